"""``python -m benchmarks``: measure, show beside the targets, and write the results."""

from benchmarks.command import main

main(prog_name="python -m benchmarks")
