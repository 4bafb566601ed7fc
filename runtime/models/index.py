"""The index of named bundles: one JSON file, in a folder or at an https URL, beside the bundles that it lists.

    {"format": [1, 0],
     "bundles": [{"name": "transformer-int8", "version": "1.0", "description": "...", "family": "transformer",
                  "recipe": "int8", "licence": "...", "scores": {...},
                  "path": "transformer-int8",
                  "files": {"manifest.json": {"sha256": "...", "size_bytes": 4711}, ...}},
                 {..., "path": "lstm.zip", "zip": {"sha256": "...", "size_bytes": 1147000}}]}

`path` is relative to the index: the bundle's folder where there are `files`, the zip itself where there is `zip`. Every
part of it is a plain name, so an index reaches nothing beside or above itself, and no other host.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from captionlite.runtime.errors import BundleError, ModelError
from captionlite.runtime.jsonreader import Node, strict_json
from captionlite.runtime.specs import MAX_FILE_BYTES

INDEX_FORMAT = (1, 0)
INDEX_FILE = "index.json"
MAX_INDEX_BYTES = 4 << 20
MAX_BUNDLES = 1000
MAX_FILES = 100
_ADVICE = "Ask who publishes this index; `captionlite models index FOLDER` makes one."

# Lower case alone, so that a name is the same file on every disk; no dot or dash first, so that it is no option or
# hidden file; and no separator anywhere.
NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}", re.ASCII)
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,99}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
RESERVED = ("default",)  # what stands in the package


@dataclass(frozen=True)
class Remote:
    """One file to fetch: its path below the index, its checksum (hexadecimal) and size."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Entry:
    """A version of a named bundle: what it is, and its files by their name in the bundle (or the one zip of them)."""

    name: str
    version: str
    description: str
    family: str
    recipe: str
    licence: str
    scores: dict[str, Any]
    files: dict[str, Remote] = field(default_factory=dict)
    zip: Remote | None = None

    @property
    def label(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """Everything to fetch."""
        return tuple(self.files.values()) if self.zip is None else (self.zip,)

    @property
    def size_bytes(self) -> int:
        """Of everything to fetch."""
        return sum(remote.size_bytes for remote in self.remotes)

    @property
    def digest(self) -> str:
        """Hash of what the contents are; names and descriptions do not count."""
        contents = {name: remote.sha256 for name, remote in self.files.items()}
        if self.zip is not None:
            contents[".zip"] = self.zip.sha256
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As it stands in an index."""
        found = asdict(self)
        del found["files"], found["zip"]
        if self.zip is not None:
            one = {"sha256": self.zip.sha256, "size_bytes": self.zip.size_bytes}
            return {**found, "path": self.zip.path, "zip": one}
        folder = next(iter(self.files.values())).path.rpartition("/")[0]
        files = {name: {"sha256": r.sha256, "size_bytes": r.size_bytes} for name, r in self.files.items()}
        return {**found, "path": folder, "files": files}


@dataclass(frozen=True)
class Index:
    """The bundles of an index, and the folder or URL (with a slash at the end) that their paths are relative to."""

    where: str
    base: str
    entries: tuple[Entry, ...]

    def find(self, wanted: str) -> Entry:
        """NAME (its newest version) or NAME@VERSION. Raises ModelError that lists what there is."""
        name, version = split_label(wanted)
        found = [entry for entry in self.entries if entry.name == name and version in (None, entry.version)]
        if not found:
            there = ", ".join(entry.label for entry in self.entries) or "nothing"
            raise ModelError(f"{self.where}: no bundle {wanted!r}. This index has: {there}.")
        return max(found, key=lambda entry: version_key(entry.version))


def split_label(label: str) -> tuple[str, str | None]:
    """NAME or NAME@VERSION in its parts. Raises ModelError for what can be neither."""
    name, at, version = label.partition("@")
    if not NAME.fullmatch(name) or (at and not VERSION.fullmatch(version)):
        raise ModelError(
            f"{label!r} is no name of a bundle: expected NAME or NAME@VERSION, the name of lower-case letters, digits, "
            f"'_', '-' and '.', as `captionlite models list` shows them."
        )
    return name, version if at else None


def version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """To sort versions by: runs of digits as numbers, 1.10 after 1.9; what follows a letter is older (1.0rc1 < 1.0)."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return (*(((1, int(part)) if part.isdigit() else (-1, part)) for part in parts), (0, 0))


def parse_index(data: bytes, where: str, base: str) -> Index:
    """Read an index strictly. Raises ModelError that names the field."""
    try:
        root = Node(strict_json(data), "", where, _ADVICE)
    except ValueError as error:
        raise ModelError(f"{where}: not readable as JSON ({error}). {_ADVICE}") from None
    try:
        return _read(root, where, base)
    except BundleError as error:
        raise ModelError(str(error)) from None


def index_json(entries: list[Entry]) -> bytes:
    """The file of these entries."""
    found = {"format": list(INDEX_FORMAT), "bundles": [entry.to_json() for entry in entries]}
    return (json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_entry(node: Node, extra: bool = False) -> Entry:
    """One entry of `bundles`. Raises BundleError."""
    texts = ("name", "version", "description", "family", "recipe", "licence")
    fields = node.fields(*texts, "scores", "path", optional=("files", "zip"), allow_extra=extra)
    name, version = fields["name"].text(), fields["version"].text()
    if not NAME.fullmatch(name) or name in RESERVED:
        raise fields["name"].fail(f"a name of lower-case letters, digits, '_', '-' and '.', not {RESERVED[0]!r}")
    if not VERSION.fullmatch(version):
        raise fields["version"].fail("a version such as 1.0 (letters, digits, '.', '+', '_' and '-')")
    if not isinstance(fields["scores"].value, dict):
        raise fields["scores"].fail("an object")
    path = fields["path"].text(1000)
    if not all(_PART.fullmatch(part) for part in path.split("/")):
        raise fields["path"].fail("a path below the index, of plain names (letters, digits, '_', '-', '.', '+', '@')")
    if ("files" in fields) == ("zip" in fields):
        raise node.fail("either files or zip")
    described = {key: fields[key].text(2000 if key == "description" else 200) for key in texts[2:]}
    files, one = {}, None
    if "zip" in fields:
        one = _read_remote(fields["zip"], path, extra)
    else:
        items = fields["files"].items()
        if "manifest.json" not in items or len(items) > MAX_FILES:
            raise fields["files"].fail(f"at most {MAX_FILES} files, manifest.json among them")
        for file, row in items.items():
            if not _PART.fullmatch(file):
                raise row.fail(f"a plain name instead of {file!r}")
            files[file] = _read_remote(row, f"{path}/{file}", extra)
    return Entry(name, version, **described, scores=fields["scores"].value, files=files, zip=one)


def _read(root: Node, where: str, base: str) -> Index:
    found = root.fields("format", "bundles", allow_extra=True)
    numbers = found["format"].list_of(lambda part: part.integer(0, 10**6))
    if len(numbers) != 2 or numbers[0] < 1:
        raise found["format"].fail(f"[{INDEX_FORMAT[0]}, {INDEX_FORMAT[1]}]")
    if numbers[0] > INDEX_FORMAT[0]:
        raise BundleError(
            f"{where}: format is {numbers[0]}.{numbers[1]}, but this captionlite reads {INDEX_FORMAT[0]}.x. Upgrade it "
            f"with `pip install --upgrade captionlite`."
        )
    extra = numbers > INDEX_FORMAT
    if not extra:
        root.fields("format", "bundles")
    entries = found["bundles"].list_of(lambda node: read_entry(node, extra), MAX_BUNDLES)
    labels = [entry.label for entry in entries]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise found["bundles"].fail(f"each version of a name once, but {', '.join(repeated)} stands there twice")
    return Index(where, base, entries)


def _read_remote(node: Node, path: str, extra: bool) -> Remote:
    fields = node.fields("sha256", "size_bytes", allow_extra=extra)
    sha256 = fields["sha256"].text()
    if not _SHA256.fullmatch(sha256):
        raise fields["sha256"].fail("64 lower-case hexadecimal digits")
    return Remote(path, sha256, fields["size_bytes"].integer(1, MAX_FILE_BYTES))


def local_index(location: Path) -> Index:
    """The index in a folder, or the file itself. Raises ModelError."""
    file = location / INDEX_FILE if location.is_dir() else location
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"{file}: cannot be read ({error.strerror}). Expected an index of bundles: {_ADVICE}"
        ) from None
    if len(data) > MAX_INDEX_BYTES:
        raise ModelError(f"{file}: larger than {MAX_INDEX_BYTES} bytes, expected an index of bundles. {_ADVICE}")
    return parse_index(data, str(file), str(file.parent))
