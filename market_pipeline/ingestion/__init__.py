"""Floor 2: the work of a run: what it asks for, what came back, and how a batch is committed.

Here: the request, collecting batches from providers, validation, the transaction of a batch,
receipts. Not here: requests to a provider (``providers``), SQL (``storage``), Dagster.
"""
