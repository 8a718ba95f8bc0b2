"""The addresses that alerts may go to: looked up once, checked, and used as they were checked.

The name of a receiver is a setting, but the network decides which address it has. That address must
not be this machine, its neighbours or a cloud's metadata. ``ALERT_ALLOW_PRIVATE`` allows them.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address
# Beyond what Python calls global: they carry or reach other addresses.
_REFUSED = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
        "224.0.0.0/4", "240.0.0.0/4", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64",
        "2001::/32", "2002::/16", "5f00::/16", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip


class RefusedAddressError(ValueError):
    """A receiver's name leads to an address that alerts may not go to."""


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the open internet."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    is_refused = any(address in block for block in _REFUSED if block.version == address.version)
    return address.is_global and not address.is_multicast and not is_refused


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses to connect to, the best first.

    Args:
        host: A name or an address, without brackets.
        port: Where the connection goes.

    Raises:
        RefusedAddressError: One of its addresses is private; the message does not name the host.
        OSError: It cannot be looked up.
    """
    found = [str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(is_public(ip_address(text.partition("%")[0])) for text in found):
        raise RefusedAddressError(
            "the receiver's address is private: ALERT_ALLOW_PRIVATE=true allows it"
        )
    return found
