"""Names of hosts and origins, read strictly: what no browser would send is no name. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
"""What a scheme's port is where none is named."""
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")


class Host(NamedTuple):
    """A host as a `Host` header names it."""

    name: str
    """In lower case, without the dot that ends a full name; an IPv6 address without brackets, shortened."""
    port: int | None

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address, where the host is named by one: such a name cannot be made to lead elsewhere."""
        try:
            return ipaddress.ip_address(self.name)
        except ValueError:
            return None


class Origin(NamedTuple):
    """A web origin, RFC 6454. The port is the scheme's own where none was named."""

    scheme: str
    name: str
    port: int | None


def read_host(text: str) -> Host | None:
    """`name`, `name:port`, `[::1]:port`. None: credentials, a zone, an empty label, a wrong port, anything else."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    name, port = found[1].lower(), None if found[2] is None else int(found[2])
    if port is not None and not 1 <= port <= 65535:
        return None
    if name.startswith("["):
        try:
            return Host(str(ipaddress.IPv6Address(name[1:-1])), port)
        except ValueError:
            return None
    name = name.removesuffix(".")
    return None if "" in name.split(".") else Host(name, port)


def read_origin(text: str) -> Origin | None:
    """`scheme://host` or `scheme://host:port`. None: `null`, a path, credentials, anything else."""
    scheme, colon, rest = text.partition("://")
    scheme = scheme.lower()
    host = read_host(rest) if colon and _SCHEME.fullmatch(scheme) else None
    return None if host is None else Origin(scheme, host.name, host.port or PORTS.get(scheme))
