"""The newest values of markets, the version that they have, and who hears of a change.

Not here: what is cached (``cache``, ``readers``).
"""
