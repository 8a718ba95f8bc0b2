"""The newest values of markets, their version, and the listeners to changes.

Not here: what is cached (``cache``, ``readers``).
"""
