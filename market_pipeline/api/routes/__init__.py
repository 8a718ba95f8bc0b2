"""Routes that programs use, one module a subject; each has a ``router``."""
