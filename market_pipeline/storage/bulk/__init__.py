"""Many rows at once: staged and merged into a table, and copied out of a query.

Not here: what the rows mean.
"""
