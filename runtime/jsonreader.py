"""Reading JSON that somebody else wrote: types and ranges are checked, and every refusal names its JSON path."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from captionlite.runtime.errors import BundleError

T = TypeVar("T")


def strict_json(data: bytes) -> Any:
    """Parse UTF-8 JSON; NaN, Infinity, repeated keys and bottomless nesting raise ValueError, as no JSON does."""

    def no_constants(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the field {repeated!r} stands twice in one object")
        return found

    try:
        return json.loads(data.decode("utf-8"), parse_constant=no_constants, object_pairs_hook=no_repeated_keys)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def parse_json(data: bytes, where: str) -> Any:
    """Parse a bundle's UTF-8 JSON as strictly as `strict_json` does. Raises BundleError."""
    try:
        return strict_json(data)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise BundleError(f"{where}: not readable as JSON ({error}). Copy or export the bundle again.") from None


@dataclass(frozen=True)
class Node:
    """One JSON value with the path that leads to it, such as `graphs.decoder.inputs[2].dtype`."""

    value: Any
    path: str
    where: str
    advice: str = "Export the bundle again."  # the last sentence of every refusal

    def fail(self, expected: str) -> BundleError:
        """The error for a value that is not what was expected; the caller raises it."""
        found = repr(self.value)
        if len(found) > 80:
            found = found[:77] + "..."
        place = self.path or "the top level"
        return BundleError(f"{self.where}: {place} is {found}, expected {expected}. {self.advice}")

    def fields(self, *names: str, optional: tuple[str, ...] = (), allow_extra: bool = False) -> dict[str, "Node"]:
        """The named fields of an object; a missing one, and an unknown one unless allowed, is refused.

        Of the `optional` ones only those that are there are returned.
        """
        if not isinstance(self.value, dict):
            raise self.fail("an object")
        for name in names:
            if name not in self.value:
                raise BundleError(f"{self.where}: {self._child(name)} is missing. {self.advice}")
        if not allow_extra:
            for name in self.value:
                if name not in names and name not in optional:
                    raise BundleError(
                        f"{self.where}: {self._child(name)} is not a field of this format, expected only "
                        f"{', '.join((*names, *optional))}. {self.advice}"
                    )
        present = (*names, *(name for name in optional if name in self.value))
        return {name: Node(self.value[name], self._child(name), self.where, self.advice) for name in present}

    def items(self) -> dict[str, "Node"]:
        """Every entry of an object whose keys are free."""
        if not isinstance(self.value, dict):
            raise self.fail("an object")
        return {name: Node(value, self._child(name), self.where, self.advice) for name, value in self.value.items()}

    def list_of(self, read: Callable[["Node"], T], longest: int = 4096) -> tuple[T, ...]:
        """A list, each element read by `read`."""
        if not isinstance(self.value, list):
            raise self.fail("a list")
        if len(self.value) > longest:
            raise BundleError(f"{self.where}: {self.path} has {len(self.value)} entries, expected at most {longest}.")
        return tuple(
            read(Node(value, f"{self.path}[{i}]", self.where, self.advice)) for i, value in enumerate(self.value)
        )

    def text(self, longest: int = 200) -> str:
        """A non-empty printable string."""
        if not isinstance(self.value, str) or not 0 < len(self.value) <= longest or not self.value.isprintable():
            raise self.fail(f"a printable string of 1 to {longest} characters")
        return self.value

    def choice(self, *allowed: str) -> str:
        """One of the allowed strings."""
        if not isinstance(self.value, str) or self.value not in allowed:
            raise self.fail(" or ".join(repr(name) for name in allowed))
        return self.value

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included; true and false are no integers."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.fail(f"an integer from {low} to {high}")
        return self.value

    def number(self, low: float, high: float) -> float:
        """A number from low to high, both included."""
        if type(self.value) not in (int, float) or not low <= self.value <= high:
            raise self.fail(f"a number from {low:g} to {high:g}")
        return float(self.value)

    def _child(self, name: str) -> str:
        # Paths are printed to terminals, and the names of unknown fields are anybody's.
        name = name if name.isprintable() and len(name) <= 100 else ascii(name[:100])
        return f"{self.path}.{name}" if self.path else name
