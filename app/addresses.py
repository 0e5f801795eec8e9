"""Hosts, ports and origins: strict parsing, formatting, and whether one leads to this machine. Does no I/O.

The parsers reject every text that no browser sends as a host or an origin.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
"""A scheme's default port."""
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")


class Host(NamedTuple):
    """A host as in a `Host` header."""

    name: str
    """In lower case, without a trailing dot; an IPv6 address without brackets, in its short form."""
    port: int | None

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The IP address, if the host is one; None for a name. DNS cannot redirect such a host."""
        try:
            return ipaddress.ip_address(self.name)
        except ValueError:
            return None


class Origin(NamedTuple):
    """A web origin, RFC 6454. The port is the scheme's default unless one was given."""

    scheme: str
    name: str
    port: int | None


def read_host(text: str) -> Host | None:
    """Parses `name`, `name:port` or `[::1]:port`. None for anything else: credentials, a zone, a bad label or port."""
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
    """Parses `scheme://host` or `scheme://host:port`. None for anything else: `null`, a path, credentials."""
    scheme, colon, rest = text.partition("://")
    scheme = scheme.lower()
    host = read_host(rest) if colon and _SCHEME.fullmatch(scheme) else None
    return None if host is None else Origin(scheme, host.name, host.port or PORTS.get(scheme))


def bracketed(host: str) -> str:
    """A host as URLs write it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether a host, by name or by address, is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def leads_to_loopback(url: str) -> bool:
    """Whether a URL leads to this machine's loopback, so that no proxy may be used whatever the environment names."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # not a URL: opening it raises the error
        return False
