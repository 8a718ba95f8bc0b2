"""Floor 1: PostgreSQL, as tables, one engine, one bulk upsert, and the queries readers need.

Here: the embedded server, addresses, migrations, every SQL statement of the project.
Not here: where rows come from (``providers``), when they are written (``ingestion``), Dagster.
"""
