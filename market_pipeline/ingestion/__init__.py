"""Floor 2: what a run asks for, what came back, and how a batch is committed.

Here: the request, collecting batches from providers, validation, the transaction of a batch,
receipts. Not here: how a provider is asked (``providers``), SQL (``storage``), Dagster.
"""
