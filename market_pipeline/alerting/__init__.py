"""Alerts: one for each problem, with what happened and what to do.

Raising writes to the outbox in the caller's transaction (``raising``). Another process delivers, at
least once (``delivery``). Kinds are listed in ``kinds``, receivers in ``receivers``.
"""
