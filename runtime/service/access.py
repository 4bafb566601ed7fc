"""Who may ask: the bearer token, the names in Host, and no pages of other sites."""

import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from socket import AF_UNSPEC, SOCK_STREAM, getaddrinfo
from urllib.parse import urlsplit

from captionlite.runtime.errors import CaptionliteError, OptionsError
from captionlite.runtime.service.problems import RequestError, shown

VARIABLE = "CAPTIONLITE_TOKEN"
SHORTEST = 16
OPEN_PATHS = frozenset(("/healthz",))
"""What is answered without a token: it tells no more than whether there is a service."""

_MAKE_ONE = "Make one with `head -c 24 /dev/urandom | base64 > token && chmod 600 token`."


def read_token(path: Path | None) -> bytes | None:
    """The token in a file or in the environment variable, or None without either. Raises CaptionliteError."""
    if path is None:
        text = os.environ.get(VARIABLE)
        return None if text is None else _checked(text.strip(), f"the environment variable {VARIABLE}")
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o007:
                raise CaptionliteError(
                    f"--token-file {path}: everybody on this machine can open it. Run `chmod o= {path}`."
                )
            data = stream.read(5000)
    except OSError as error:
        raise CaptionliteError(f"--token-file {path}: cannot be read ({error.strerror}). {_MAKE_ONE}") from None
    try:
        return _checked(data.decode("ascii").strip(), f"--token-file {path}")
    except UnicodeDecodeError:
        raise CaptionliteError(f"--token-file {path}: not ASCII, expected letters and digits. {_MAKE_ONE}") from None


def _checked(token: str, where: str) -> bytes:
    if not SHORTEST <= len(token) <= 4096:
        found = f"{len(token)} characters"
        raise CaptionliteError(f"{where}: the token has {found}, expected {SHORTEST} to 4096. {_MAKE_ONE}")
    if not all("!" <= letter <= "~" for letter in token):
        raise CaptionliteError(f"{where}: the token has blanks or no ASCII, which no header can carry. {_MAKE_ONE}")
    return token.encode("ascii")


def is_local(host: str) -> bool:
    """Whether only this machine can connect to what is bound to `host`. Raises OptionsError for no known name."""
    try:
        found = getaddrinfo(host, None, AF_UNSPEC, SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OptionsError(
            f"--host {host!r}: no address of this machine ({error}). Expected 127.0.0.1, ::1, 0.0.0.0 or one that "
            f"`ip address` lists."
        ) from None
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


@dataclass(frozen=True)
class Access:
    """What a request must show. `hosts` None: any name in Host."""

    token: bytes | None
    hosts: frozenset[str] | None

    @classmethod
    def of(cls, host: str, token: bytes | None, allowed: Iterable[str] = ()) -> "Access":
        """The rules for a service bound to `host`. Raises OptionsError when others could come in without a token.

        Bound to this machine alone, Host must be one of its names: a page of another site, which had its name point to
        127.0.0.1 (DNS rebinding), still sends that name.
        """
        names = frozenset(name.lower() for name in allowed)
        if is_local(host):
            return cls(token, names | {"localhost", host.lower()})
        if token is None:
            raise OptionsError(
                f"--host {host}: others can connect there, so a token is needed. Give --token-file FILE or the "
                f"environment variable {VARIABLE}, or leave out --host to serve this machine alone. {_MAKE_ONE}"
            )
        return cls(token, names or None)

    def check(self, path: str, headers: dict[str, str]) -> None:
        """Raises RequestError: 401, 403, 421."""
        host = headers.get("host", "")
        name = _name(host)
        if self.hosts is not None and name not in self.hosts and not _is_loopback(name):
            raise RequestError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "This service does not go by that name.",
                found=f"Host {shown(host)}",
                expected=", ".join(sorted(self.hosts)),
                next_step="Use one of these names, or start the service with --allow-host NAME.",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                "Pages of other sites may not use this service.",
                found=f"Origin {shown(origin)}",
                expected="the service's own, or none",
                next_step="Send the request from a program, or through a server of your own.",
            )
        if self.token is not None and path not in OPEN_PATHS:
            self._check_token(headers.get("authorization", ""))

    def _check_token(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token or b"")
        if scheme.lower() != "bearer" or not right:
            raise RequestError(
                HTTPStatus.UNAUTHORIZED,
                "The token is wrong." if header else "There is no token.",
                found=f"Authorization: {shown(scheme, 20)} ..." if header else "no Authorization",
                expected="Authorization: Bearer TOKEN",
                next_step="Send the token that the service was started with.",
                headers={"WWW-Authenticate": 'Bearer realm="captionlite"'},
            )


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
