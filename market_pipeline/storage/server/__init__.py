"""The server: the embedded one or another, its address, engines, migrations, roles, backups.

Not here: any statement about market data.
"""
