"""Statistics and comparisons as they are stored, and what they were computed from.

Not here: their formulas (``domain``).
"""
