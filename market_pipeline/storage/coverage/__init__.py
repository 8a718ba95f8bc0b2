"""What is settled and what is missing of each market and interval.

Not here: the bars themselves (``bars``).
"""
