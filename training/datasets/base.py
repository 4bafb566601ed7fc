"""What every data set becomes: photographs with captions, in named splits, and a report of what was left out."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from captionlite.training.datasets.photos import Photo
from captionlite.training.errors import DatasetError

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One photograph and what people wrote about it. `id` is unique in its data set, as a rule the file's name."""

    image: Photo
    captions: tuple[str, ...]
    id: str


@dataclass(frozen=True)
class DatasetReport:
    """What was skipped, and why, so that nobody trains on less than they believe."""

    missing_photos: tuple[str, ...] = ()
    undecodable_photos: tuple[str, ...] = ()
    photos_without_captions: int = 0
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as lines for people; empty when nothing is amiss."""
        lines = []
        if self.missing_photos:
            lines.append(f"{_count(self.missing_photos)} with captions but no photograph, skipped")
        if self.undecodable_photos:
            lines.append(f"{_count(self.undecodable_photos)} that cannot be decoded, skipped")
        if self.photos_without_captions:
            lines.append(f"{self.photos_without_captions} photographs without captions, skipped")
        return lines + list(self.notes)


@dataclass(frozen=True)
class Dataset:
    """Named splits of examples. `licence` says under which terms the data may be used."""

    name: str
    splits: dict[str, tuple[Example, ...]]
    report: DatasetReport = field(default_factory=DatasetReport)
    licence: str = "unknown"

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of one split.

        Raises:
            DatasetError: there is no such split; the message lists those there are and why one may be missing.
        """
        if name in self.splits:
            return self.splits[name]
        there = ", ".join(f"{split} ({len(examples)})" for split, examples in self.splits.items()) or "none"
        notes = "".join(f" {note}" for note in self.report.notes)
        raise DatasetError(f"{self.name}: there is no split {name!r}; the splits are: {there}.{notes}")

    @property
    def examples(self) -> tuple[Example, ...]:
        """All examples of all splits, split by split."""
        return tuple(example for examples in self.splits.values() for example in examples)

    def without_undecodable(self, ids: Iterable[str]) -> "Dataset":
        """The data set less the photographs that turned out not to decode, with these listed in the report."""
        dropped = frozenset(ids)
        if not dropped:
            return self
        splits = {
            name: tuple(example for example in examples if example.id not in dropped)
            for name, examples in self.splits.items()
        }
        undecodable = tuple(dict.fromkeys((*self.report.undecodable_photos, *sorted(dropped))))
        return replace(self, splits=splits, report=replace(self.report, undecodable_photos=undecodable))


def read_text(path: Path) -> str:
    """Text of a data set's file: UTF-8, with or without a byte order mark, any line ending.

    Raises:
        DatasetError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8 first.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}.") from None


def _count(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} photograph{'s' if len(names) != 1 else ''} ({shown}{more})"
