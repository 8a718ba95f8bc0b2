"""Wrong sign-ins, counted by address in this process, so that nobody can try thousands of tokens.

Behind a proxy, all visitors have the proxy's address. The proxy counts by their own addresses.
"""

import math
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

MOST_ADDRESSES = 1_000
_FREE = 10
_SECONDS_EACH = 6.0
_NETWORK_BITS = 64


class WrongSignIns:
    """Ten are free, then one every six seconds; the oldest of too many addresses is forgotten.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # How many count by address, and since when.
        self._counted: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._counted)

    def compute_wait(self, address: str) -> int:
        """Return after how many seconds an address may try again; 0: now."""
        excess = self._count(_find_group(address)) - (_FREE - 1)
        return math.ceil(max(excess, 0.0) * _SECONDS_EACH)

    def note(self, address: str) -> None:
        """Count a wrong sign-in."""
        group = _find_group(address)
        count = self._count(group)
        self._counted.pop(group, None)
        if len(self._counted) >= MOST_ADDRESSES:
            del self._counted[next(iter(self._counted))]
        self._counted[group] = (count + 1, self._clock())

    def _count(self, group: str) -> float:
        count, since = self._counted.get(group, (0.0, 0.0))
        return max(count - (self._clock() - since) / _SECONDS_EACH, 0.0)


def _find_group(address: str) -> str:
    """Return the network that is counted as one: an IPv6 user has a whole network of addresses."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(int(parsed) >> _NETWORK_BITS)
    return address
