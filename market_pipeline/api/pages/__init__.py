"""Pages for people: the dashboard, rendered on the server.

One module a page, each with a ``router``: rows of ``storage`` in, a template out. What
a page shows is built by pure functions. ``formats`` writes values, ``charts`` and ``pictures``
draw, ``rendering`` answers, ``assets`` sends scripts and style sheets. No page asks a provider.
"""
