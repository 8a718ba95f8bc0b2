"""Floor 1: what the pipeline tells about itself to whoever watches it."""
