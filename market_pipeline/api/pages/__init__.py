"""Pages for people: the dashboard, rendered on the server.

One module for each page, with a ``router``: it reads rows of ``storage`` and renders a
template. Pure functions build what a page shows. ``formats`` writes values, ``charts`` and
``pictures`` draw, ``rendering`` answers, ``assets`` sends scripts and style sheets. No page sends a
request to a provider.
"""
