"""Floor 3: HTTP. Programs trigger runs and read data here. People look at pages.

``app`` is made of ``routes`` (JSON and files) and ``pages`` (HTML). ``services`` holds what every
route may use. ``security`` checks every request first. ``problems`` defines the one form of errors.
Dagster runs the jobs (``dagster_client``), or a child process where it has no webserver
(``child_runs``).
"""
