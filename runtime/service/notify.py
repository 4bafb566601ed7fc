"""Telling systemd how the service is, where systemd started it with Type=notify; see sd_notify(3)."""

import os
import socket
from contextlib import suppress


def notify(state: str) -> bool:
    """Send a line such as "READY=1". False where nobody listens; never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address[0] == "@":  # an abstract socket
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), address)
        return True
    return False


def watchdog_s() -> float | None:
    """How often at least systemd wants to hear "WATCHDOG=1", in seconds; None where it does not ask."""
    try:
        asked_for = int(os.environ.get("WATCHDOG_PID") or os.getpid())
        interval = int(os.environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return None
    return interval if asked_for == os.getpid() and interval > 0 else None
