"""What went wrong with a request, as status and JSON: the service's errors say what, found, expected and next."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any


class RequestError(Exception):
    """An answer that is no caption. `what` is a whole sentence; `found` and `expected` may be left out."""

    def __init__(
        self,
        status: HTTPStatus,
        what: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        next_step: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.found = found
        self.expected = expected
        self.next_step = next_step
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """The body: {"error": {"status", "title", "what", "found", "expected", "next"}}."""
        return {
            "error": {
                "status": int(self.status),
                "title": self.status.phrase,
                "what": self.what,
                "found": self.found,
                "expected": self.expected,
                "next": self.next_step,
            }
        }

    def body(self) -> bytes:
        """The JSON as bytes, ASCII, because what was found may be anybody's."""
        return json.dumps(self.to_json()).encode() + b"\n"


def shown(text: str, longest: int = 80) -> str:
    """Somebody else's text as it may stand in a message: printable, quoted and short."""
    return ascii(text[:longest]) + ("..." if len(text) > longest else "")


def bad_request(
    what: str, *, found: str | None = None, expected: str | None = None, next_step: str = "See /openapi.json."
) -> RequestError:
    """400, for what does not follow the interface."""
    return RequestError(HTTPStatus.BAD_REQUEST, what, found=found, expected=expected, next_step=next_step)


def overloaded(what: str, retry_after_s: int = 1) -> RequestError:
    """503, with when to come again."""
    return RequestError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        what,
        next_step=f"Send the request again after {retry_after_s} s (Retry-After).",
        headers={"Retry-After": str(retry_after_s)},
    )
