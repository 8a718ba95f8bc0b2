"""Floor 1: network in, validated records out.

Here: one module for each provider with the same furniture (build the query: pure; fetch: the only
network, through ``http.py``; parse: pure), and the registry that finds them.
Not here: storage, retries of whole runs, Dagster.
"""
