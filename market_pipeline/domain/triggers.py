"""Triggers: the four words for what started a run, in receipts, metrics, alerts and answers."""

from collections.abc import Mapping

TRIGGERS = ("manual", "cron", "schedule", "backfill")
TRIGGER_TAG = "market_pipeline/trigger"
LAUNCH_TAG = "market_pipeline/launch"
# Runs with it hold a lock while they live. Jobs have it, as a run that is killed before its first
# step could not set it.
ALIVE_TAGS = {"market_pipeline/shows_life": "lock"}
# The daemon beats every 30 seconds; Dagster calls it healthy for half an hour after its death.
BEATS_WITHIN_SECONDS = 90.0
# A long span of many markets takes longer than dagster.yaml lets a run take, and a hundred months
# that wait must not keep a tick of the schedule waiting.
BACKFILL_TAGS = {
    **ALIVE_TAGS,
    TRIGGER_TAG: "backfill",
    "dagster/max_runtime": "86400",
    "dagster/priority": "-1",
}
_SCHEDULE_TAG = "dagster/schedule_name"


def find_trigger(tags: Mapping[str, str]) -> str:
    """Return what started a run with these tags; a word of a person's own is ``manual``."""
    told = tags.get(TRIGGER_TAG, "schedule" if _SCHEDULE_TAG in tags else "manual")
    return told if told in TRIGGERS else "manual"
