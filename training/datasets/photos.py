"""Photographs inside a zip, read in place: COCO's archives hold 83,000 files that nobody need unpack.

A `ZippedPhoto` stands wherever a photograph's path does: `load_image` takes anything that has `read_bytes`.
"""

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from captionlite.training.errors import DatasetError

MAX_PHOTO_BYTES = 500 * 2**20
"""Largest member that is unpacked: a small zip can claim to hold more than the memory does."""


@dataclass(frozen=True)
class ZippedPhoto:
    """One member of a zip. Equal by archive and member, as paths are."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    def read_bytes(self) -> bytes:
        """The file's bytes. May be called from several threads at once.

        Raises:
            OSError: the archive or the member is gone, damaged, encrypted or too large.
        """
        try:
            opened = _open(self.archive)
            size = opened.getinfo(self.member).file_size
            if size > MAX_PHOTO_BYTES:
                raise OSError(f"unpacks to {size} bytes, expected at most {MAX_PHOTO_BYTES}")
            return opened.read(self.member)
        except KeyError:
            raise OSError(f"no longer in {self.archive}") from None
        except OSError:
            raise
        except Exception as error:  # BadZipFile, zlib.error, RuntimeError (encrypted), NotImplementedError, EOFError
            raise OSError(f"damaged, or in a form that is not read: {error}") from None


Photo: TypeAlias = Path | ZippedPhoto


def zip_members(archive: Path) -> list[str]:
    """The names of the files in a zip.

    Raises:
        DatasetError: it cannot be read, or is no zip.
    """
    try:
        return [info.filename for info in _open(archive).infolist() if not info.is_dir()]
    except OSError as error:
        raise DatasetError(f"{archive}: cannot be read: {error.strerror or error}.") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DatasetError(f"{archive}: not a whole zip file ({error}); download it again.") from None


@lru_cache(maxsize=8)
def _open(archive: Path) -> zipfile.ZipFile:
    # Kept open: reading the directory of an archive of 83,000 photographs takes a second.
    return zipfile.ZipFile(archive)
