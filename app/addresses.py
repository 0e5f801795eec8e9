"""What an address says about where it leads. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether a host, by name or number, is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def leads_to_loopback(url: str) -> bool:
    """The same of a URL: no proxy stands on the way there, whatever the environment names."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # no URL: whoever opens it says so
        return False
