"""Floor 1: PostgreSQL, by subject; every SQL statement of the project.

``tables`` and ``ledgers`` say what is stored, ``migrations`` how it came to be. ``server`` reaches
the database, ``bulk`` moves many rows; the other folders each hold the SQL of their subject.
Not here: where rows come from (``providers``), when they are written (``ingestion``), Dagster.
"""
