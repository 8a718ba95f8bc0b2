"""Floor 3: the ``market-pipeline`` command, a thin door to the rooms below."""
