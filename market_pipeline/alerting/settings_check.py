"""A check of every setting of alerts, so that a wrong one is found before an alert is lost."""

from market_pipeline.alerting.raising import read_cooldown
from market_pipeline.alerting.receivers import check_web, read_receivers
from market_pipeline.alerting.signing import read_keys
from market_pipeline.settings import SEVERITIES, read_choice, read_variable


def check_alert_settings() -> None:
    """Read all of them, and refuse wrong ones.

    Raises:
        SettingError: Names the variable and what is accepted; never repeats a secret.
    """
    read_choice("ALERT_MIN_SEVERITY", SEVERITIES)
    read_receivers()
    read_keys()
    read_cooldown()
    if address := read_variable("HEARTBEAT_URL"):
        check_web(address, "HEARTBEAT_URL")
