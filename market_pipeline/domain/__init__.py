"""Floor 0: the concepts of the field, as pure computation.

Here: errors, symbols, intervals, records, sessions, validation, statistics.
Not here: a clock, the network, a database, Dagster. The callers have them.
"""
