"""Floor 1: fetching from providers, and validated records as the result.

Here: one module for each provider with the same parts (build the query: pure; fetch: the only
network, through ``http.py``; parse: pure), and the registry that finds them.
Not here: storage, retries of whole runs, Dagster.
"""
