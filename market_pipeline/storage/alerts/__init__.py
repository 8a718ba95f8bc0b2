"""The outbox of alerts, and the stored metrics.

Not here: when an alert is raised and what it says (``alerting``).
"""
