"""Floor 3: every Dagster word of the project.

Here: assets, checks, the IO manager, resources, jobs, the schedule, sensors, Dagster's own storage.
Not here: computation (``domain``), fetching and committing (``ingestion``), SQL (``storage``).
"""
