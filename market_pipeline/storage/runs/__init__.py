"""Runs: their receipts, whether they live, what they hold and may spend, how long they are kept.

Not here: the bars that a run wrote (``bars``).
"""
