"""Ports of loopback for servers that a test starts."""

import itertools
import os
import socket

# Each worker of xdist has ports of its own, as its server binds one only seconds after the choice.
# All are below 32768, from where on the kernel gives ports to whoever asks for any.
_FIRST, _COUNT, _RANGES = 20_000, 1_000, 12


def choose_port() -> int:
    """Return a port of loopback that nobody uses, another one each time."""
    return next(filter(_is_free, itertools.islice(_ports, _COUNT)))


def _rotate() -> "itertools.cycle[int]":
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw")) + 1
    first = _FIRST + number % _RANGES * _COUNT
    # Two sessions side by side begin far from each other, however near their process ids are.
    start = os.getpid() * 617 % _COUNT
    return itertools.cycle([first + (start + step) % _COUNT for step in range(_COUNT)])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_ports = _rotate()
