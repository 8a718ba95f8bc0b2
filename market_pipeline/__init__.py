"""Market Pipeline: market data into PostgreSQL, by a pipeline that knows what it knows.

Rooms, from the bottom: ``domain``, ``settings``, ``providers`` and ``storage``, ``ingestion``,
``orchestration``, and on top ``definitions`` and ``cli``. Each knows only the floors below it.
"""
