"""Floor 3: the ``market-pipeline`` command, a thin door to the rooms below.

Each module defines commands and imports what they need when they run, so that ``--help`` is quick.
"""
