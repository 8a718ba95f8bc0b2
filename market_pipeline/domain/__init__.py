"""Floor 0: what the field means by its words, as pure computation.

Here: errors, symbols, intervals, records, sessions, validation, statistics.
Not here: a clock, the network, a database, Dagster. They are the callers' business.
"""
