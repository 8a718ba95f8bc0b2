"""Bars: stored, revised, changed between versions, refused; and the events over their spans.

Not here: which spans are complete (``coverage``), what is computed from bars (``statistics``).
"""
