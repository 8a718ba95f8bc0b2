"""Floor 3: the ``market-pipeline`` command, a thin layer over the rooms below.

Each module defines commands and imports what they need when they run, so that ``--help`` is quick.
"""
