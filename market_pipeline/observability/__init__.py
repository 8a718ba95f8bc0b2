"""Floor 1: logs, metrics and traces."""
