"""What Celery workers read: the app of dagster_celery imports this module from PYTHONPATH.

A worker that could not do what is asked ends here, before it takes a run from the queue.
"""

import os

_NEEDED = {
    "DATABASE_URL": "the PostgreSQL that all machines share",
    "DAGSTER_HOME": "the folder of this dagster.yaml",
    "CELERY_BROKER_URL": "the Valkey or Redis that hands runs over, such as redis://host:6379/0",
    "CELERY_RESULT_URL": "where the state of tasks is kept, such as redis://host:6379/1",
}
for _name, _meaning in _NEEDED.items():
    if not os.environ.get(_name, "").strip():
        raise SystemExit(
            f"Error: {_name} is not set for this worker (it reads no .env): {_meaning}"
        )
if os.environ.get("INGESTION_EXECUTOR", "").strip().lower() == "multiprocess":
    raise SystemExit(
        "Error: INGESTION_EXECUTOR='multiprocess': a Celery worker may have no child processes. "
        "Leave it at in_process; more workers run more runs at once"
    )

broker_url = os.environ["CELERY_BROKER_URL"]
result_backend = os.environ["CELERY_RESULT_URL"]
broker_connection_retry_on_startup = True
# As in dagster.yaml: the worker and who hands over must agree.
broker_transport_options = {"visibility_timeout": 90000, "socket_connect_timeout": 5}
# Acknowledged when it begins: a run that is lost is found by its lock, and retried by Dagster.
task_acks_late = False
# A run waits in the queue, where any worker may take it, and not in a busy one: if that is killed,
# the broker would not hand the run to another one before the visibility timeout.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
