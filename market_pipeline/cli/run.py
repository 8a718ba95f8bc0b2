"""Running the ingest job in this process, recorded in Dagster like any other run."""

import dagster as dg


def run_ingest_job(options: dict[str, object]) -> tuple[str, bool]:
    """Run the job and return its run id and whether it succeeded.

    Args:
        options: Fields of ``IngestionRequest``.

    Raises:
        PipelineError: A setting is wrong, or the database cannot be used.
    """
    from market_pipeline.definitions import defs

    job = defs.resolve_job_def("ingest")
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(
            run_config={
                "resources": {"request": {"config": options}},
                "loggers": {"console": {"config": {"log_level": "INFO"}}},
            },
            instance=instance,
            raise_on_error=False,
        )
    return result.run_id, result.success
