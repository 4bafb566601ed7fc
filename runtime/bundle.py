"""Bundles on disk: a directory, or the same files in an uncompressed zip. Opened only after every check has passed.

Checksums tell a damaged bundle from a whole one; they do not say who made it. Use bundles from people you trust.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from captionlite.runtime.errors import BundleError
from captionlite.runtime.files import fsync_directory
from captionlite.runtime.jsonreader import parse_json
from captionlite.runtime.labels import Labels
from captionlite.runtime.manifest import MANIFEST_FILE, FileSpec, Manifest
from captionlite.runtime.vocabulary import Vocabulary

PACKAGED_BUNDLES = Path(__file__).parent / "bundles"
MAX_MANIFEST_BYTES = 1 << 20
MAX_ZIP_ENTRIES = 100


class Bundle:
    """An opened bundle: its manifest, its vocabulary, and its files, whose sizes and checksums have been checked."""

    def __init__(self, location: Path, manifest: Manifest, source: "_Directory | _Zip") -> None:
        self.location = location
        self.manifest = manifest
        self._source = source
        file = manifest.vocabulary.file
        self.vocabulary = Vocabulary.from_json(self.read(file), manifest, f"{location}/{file}")
        self.labels: Labels | None = None
        if manifest.labels is not None:
            file = manifest.labels.file
            self.labels = Labels(self.read(file), manifest.labels, f"{location}/{file}")

    @classmethod
    def open(cls, path_or_name: str | Path = "default") -> "Bundle":
        """Open a bundle directory, a bundle zip, or a bundle by name: the packaged "default", or a pulled one.

        Raises BundleError when it is missing, damaged, inconsistent or of a newer major format.
        """
        location = _locate(path_or_name)
        source = _Directory(location) if location.is_dir() else _Zip(location)
        where = f"{location}/{MANIFEST_FILE}"
        manifest = Manifest.from_json(parse_json(source.read(MANIFEST_FILE, MAX_MANIFEST_BYTES), where), where)
        for name, spec in manifest.files.items():
            _check_file(source, name, spec, f"{location}/{name}")
        for graph in manifest.graphs.values():
            _check_flatbuffer(source, graph.file, f"{location}/{graph.file}")
        return cls(location, manifest, source)

    def manifest_bytes(self) -> bytes:
        """The manifest's file as it is. Raises BundleError."""
        return self._source.read(MANIFEST_FILE, MAX_MANIFEST_BYTES)

    def read(self, name: str) -> bytes:
        """The whole of one file that the manifest lists. Raises BundleError."""
        return self._source.read(name, self._spec(name).size_bytes)

    def path(self, name: str) -> Path | None:
        """Where the file stands on disk, so that it can be memory-mapped; None inside a zip."""
        self._spec(name)
        return self._source.path(name)

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of the files, without the manifest."""
        return sum(spec.size_bytes for spec in self.manifest.files.values())

    def _spec(self, name: str) -> FileSpec:
        if name not in self.manifest.files:
            known = ", ".join(sorted(self.manifest.files))
            raise BundleError(f"{self.location}: no file {name!r} in this bundle. It has: {known}.")
        return self.manifest.files[name]


class _Directory:
    """Files of a bundle directory. Links, pipes and devices are refused: a bundle reaches nothing outside itself."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self.root / name
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            raise BundleError(f"{path}: missing. Expected a bundle directory with all its files.") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise BundleError(f"{path}: a symbolic link, expected a file. Copy the file itself there.") from None
            raise BundleError(f"{path}: cannot be read ({error.strerror}).") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleError(f"{path}: not a regular file. Copy the bundle again.")
        with os.fdopen(descriptor, "rb") as file:
            yield file

    def size(self, name: str) -> int:
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, name: str, limit: int) -> bytes:
        with self.open(name) as file:
            return _read_at_most(file, limit, f"{self.root}/{name}")

    def path(self, name: str) -> Path | None:
        return self.root / name


class _Zip:
    """Files of an uncompressed zip. A compressed, encrypted, nested or repeated entry is refused, whatever its name."""

    def __init__(self, location: Path) -> None:
        self.location = location
        with self._archive() as archive:
            entries = archive.infolist()
        if len(entries) > MAX_ZIP_ENTRIES:
            raise BundleError(f"{location}: {len(entries)} entries, expected at most {MAX_ZIP_ENTRIES}.")
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            problem = None
            if entry.filename in self.entries:
                problem = "stands in the zip twice"
            elif "/" in entry.filename or "\\" in entry.filename:
                problem = "is in a folder, expected every file at the top of the zip"
            elif entry.flag_bits & 1:
                problem = "is encrypted"
            elif entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                problem = "is compressed, expected an uncompressed zip (`zip -0`)"
            if problem:
                raise BundleError(f"{location}: {entry.filename!r} {problem}. Pack the bundle again.")
            self.entries[entry.filename] = entry

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.location) as archive:
                yield archive
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError) as error:
            raise BundleError(
                f"{self.location}: not readable as a bundle zip ({error}). Expected a bundle directory or its "
                f"uncompressed zip; copy it again."
            ) from None

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        if name not in self.entries:
            raise BundleError(f"{self.location}: {name} is missing, expected it at the top of the zip. Pack it again.")
        with self._archive() as archive, archive.open(self.entries[name]) as file:
            yield file  # type: ignore[misc]  # ZipExtFile reads like any binary file

    def size(self, name: str) -> int:
        with self.open(name):
            return self.entries[name].file_size

    def read(self, name: str, limit: int) -> bytes:
        with self.open(name) as file:
            return _read_at_most(file, limit, f"{self.location}/{name}")

    def path(self, name: str) -> Path | None:
        return None


def _locate(path_or_name: str | Path) -> Path:
    if path_or_name == "default":
        location = PACKAGED_BUNDLES / "default"
        if not (location / MANIFEST_FILE).is_file():
            raise BundleError(
                f"{location}: this installation has no default bundle. Name a bundle directory or zip instead, or "
                f"install captionlite from a wheel."
            )
        return location
    location = Path(path_or_name)
    if location.exists():
        return location
    return _named(str(path_or_name), location)


def _named(name: str, location: Path) -> Path:
    """The bundle that `captionlite models pull` has put into the cache under this name."""
    from captionlite.runtime.errors import ModelError
    from captionlite.runtime.models import cache  # which is loaded for names alone

    found = cache.find(name)
    if found is not None:
        return found.path
    try:
        kept = str(cache.models_directory())
        there = ", ".join(one.label for one in cache.cached()) or "none"
    except ModelError:
        kept, there = "a cache", "none, because this user has no home"
    pull = ""
    if "/" not in name and not name.endswith(".zip"):
        pull = f" `captionlite models list` shows what an index has, `captionlite models pull {name}` fetches it."
    raise BundleError(
        f"{location}: no such bundle. Looked for a bundle directory or zip at {location.absolute()}, for a pulled "
        f"bundle of that name in {kept} (there: {there}), and in the package (there: `default`).{pull}"
    )


def _read_at_most(file: BinaryIO, limit: int, where: str) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{where}: larger than the {limit} bytes expected. Copy the bundle again.")
    return data


def _check_file(source: _Directory | _Zip, name: str, spec: FileSpec, where: str) -> None:
    size = source.size(name)  # first, so that nothing huge is read
    if size != spec.size_bytes:
        raise BundleError(f"{where}: {size} bytes, expected {spec.size_bytes}. Copy or export the bundle again.")
    digest = hashlib.sha256()
    with source.open(name) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != spec.sha256:
        raise BundleError(
            f"{where}: sha256 is {digest.hexdigest()}, expected {spec.sha256}. The file is damaged or was changed; "
            f"copy or export the bundle again."
        )


def _check_flatbuffer(source: _Directory | _Zip, name: str, where: str) -> None:
    """A TensorFlow Lite file carries "TFL3" at byte 4; anything else never reaches the interpreter."""
    with source.open(name) as file:
        head = file.read(8)
    if head[4:8] != b"TFL3" or int.from_bytes(head[:4], "little") >= source.size(name):
        raise BundleError(f"{where}: not a TensorFlow Lite file. Export the bundle again.")


def write_bundle(
    directory: Path, manifest_without_files: Manifest, files: dict[str, bytes], *, force: bool = False
) -> Manifest:
    """Write a bundle directory in one stroke and return its manifest with `files` filled in.

    Everything is checked and written to a temporary sibling first, then renamed, so an interrupted write leaves no
    half-written bundle. Raises BundleError when the manifest contradicts itself or its files, when `directory` exists
    (unless `force`), and, even with `force`, when what stands there is not a bundle.
    """
    sizes = {name: FileSpec(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    manifest = replace(manifest_without_files, files=sizes)
    where = f"{directory}/{MANIFEST_FILE}"
    try:
        text = json.dumps(manifest.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:  # NaN, or a value in provenance or scores that JSON does not know
        raise BundleError(f"{where}: cannot be written as JSON ({error}). Mend provenance and scores.") from None
    checked = Manifest.from_json(parse_json(text.encode(), where), where)
    _refuse_to_overwrite(directory, force)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
    try:
        for name, data in {**files, MANIFEST_FILE: text.encode()}.items():
            with open(temporary / name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)
        fsync_directory(temporary)
        Bundle.open(temporary)  # what cannot be opened again is never put in place
        if directory.exists() and any(directory.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".old", dir=directory.parent))
            os.rename(directory, old)  # onto the empty directory just made
            os.rename(temporary, directory)
            shutil.rmtree(old)
        else:
            os.rename(temporary, directory)
        fsync_directory(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return checked


def pack_bundle(directory: Path, zip_path: Path, *, force: bool = False) -> None:
    """Pack a bundle directory into an uncompressed zip; the same bundle gives the same bytes.

    Raises BundleError when the bundle does not open, or when `zip_path` exists (unless `force`).
    """
    bundle = Bundle.open(directory)
    if zip_path.exists() and not force:
        raise BundleError(f"{zip_path}: exists already. Use another name, or force to overwrite it.")
    descriptor, temporary = tempfile.mkstemp(prefix=f".{zip_path.name}.", suffix=".tmp", dir=zip_path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name in (MANIFEST_FILE, *sorted(bundle.manifest.files)):
                    entry = zipfile.ZipInfo(name)  # dated 1980, so that the bytes do not depend on the clock
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, (directory / name).read_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.rename(temporary, zip_path)
        fsync_directory(zip_path.parent)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _refuse_to_overwrite(directory: Path, force: bool) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        if not force:
            raise BundleError(f"{directory}: exists already. Choose another place, or overwrite it with --force.")
        if not (directory / MANIFEST_FILE).is_file() or directory.is_symlink():
            raise BundleError(f"{directory}: exists and is not a bundle, so --force does not remove it either.")
