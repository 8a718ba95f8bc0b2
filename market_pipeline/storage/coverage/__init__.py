"""The coverage of each market and interval: what is settled and what is missing.

Not here: the bars themselves (``bars``).
"""
