"""Floor 3: HTTP. Programs trigger runs and read data here; people look at pages.

``app`` puts it together from ``routes`` (JSON and files) and ``pages`` (HTML); ``services`` is what
every route may use; ``security`` stands before all of them; ``problems`` is the one shape of
errors. Runs are started in Dagster over its GraphQL (``dagster_client``), never here.
"""
