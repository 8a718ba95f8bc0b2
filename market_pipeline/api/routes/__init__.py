"""Routes for programs, one module for each subject; each has a ``router``."""
