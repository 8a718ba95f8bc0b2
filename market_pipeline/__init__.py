"""Market Pipeline: market data into PostgreSQL through Dagster, by a pipeline that knows what it knows.

The rooms and what each may know of the others are drawn in ``docs/architecture.md``.
"""
