"""Where the overlay's server listens."""

import ipaddress
from urllib.parse import urlsplit

DEFAULT_PORT = 8080


def parse_address(value: str) -> tuple[str, int]:
    """Host and port of http://HOST[:PORT]; no host means this machine alone. Raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme != "http" or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"expected http://HOST:PORT, found {value!r}")
    port = parts.port
    return parts.hostname or "127.0.0.1", DEFAULT_PORT if port is None else port


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
