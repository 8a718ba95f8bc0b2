"""Markets: found by name, listed, registered, switched off, removed; and their exchanges' sessions.

Not here: their bars (``bars``).
"""
