"""Alerts: who is told of what, once, with what to do.

Raising writes to the outbox in the caller's transaction (``raising``); delivery is another
process's work, and at least once (``delivery``). Kinds are listed in ``kinds``, receivers in
``receivers``.
"""
