"""Floor 3: everything that uses Dagster.

Here: assets, checks, the IO manager, resources, jobs, the schedule, sensors, Dagster's own storage.
Not here: computation (``domain``), fetching and committing (``ingestion``), SQL (``storage``).
"""

import gc

import dagster  # noqa: F401 - what is frozen

# Modules stay until the process ends: the collector need not walk Dagster's again and again, which
# takes longer than importing this project's.
gc.freeze()
# Nor need it look after every 700 new objects: a run makes them by the hundred thousand, and keeps
# most.
gc.set_threshold(10_000, 10, 10)
