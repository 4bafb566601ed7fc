"""Does a bundle compute on this machine what it computed where it was made? Golden vectors say so.

`golden.npz` holds `images` uint8 (N, H, W, 3), `encoder/NAME` (N, ...) for each encoder output, `tokens` int32 (N, T)
of greedy decoding, -1 after the end, and `logits` float32 (N, T, V) with those tokens fed. Bundles with the graph
`refine` have `refine` float32 (N, V) as well: the first word's logits of one pass over the caption, that word masked.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import BundleError, InterpreterError
from captionlite.runtime.manifest import Manifest
from captionlite.runtime.masked import golden_pass

MAX_ARRAY_BYTES = 1 << 28

_Array = npt.NDArray[Any]
Encoded = Mapping[str, _Array]  # one photograph's encoder outputs by name, each (1, ...)


@dataclass(frozen=True)
class TensorCheck:
    """Relative RMS error of one tensor over all golden photographs: rms(here - golden) / rms(golden)."""

    name: str
    error: float
    passed: bool


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `token_problems` names each photograph whose greedy tokens differ without excuse."""

    tolerance: float
    photographs: int
    tokens_equal: int
    tensors: tuple[TensorCheck, ...]
    token_problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True when every tensor is within the tolerance and no greedy caption differs without excuse."""
        return not self.token_problems and all(check.passed for check in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "photographs": self.photographs,
            "tokens_equal": self.tokens_equal,
            "tensors": {check.name: {"error": check.error, "passed": check.passed} for check in self.tensors},
            "token_problems": list(self.token_problems),
        }


@dataclass(frozen=True)
class Golden:
    """The arrays of `golden.npz`, shapes and types checked against the manifest."""

    images: npt.NDArray[np.uint8]  # (N, H, W, 3)
    encoder: dict[str, _Array]  # NAME: (N, ...)
    tokens: npt.NDArray[np.int32]  # (N, T), -1 after the end
    logits: npt.NDArray[np.float32]  # (N, T, V)
    refine: npt.NDArray[np.float32] | None = None  # (N, V)

    def first(self) -> "Golden":
        """The first photograph alone."""
        encoder = {name: array[:1] for name, array in self.encoder.items()}
        refine = None if self.refine is None else self.refine[:1]
        return Golden(self.images[:1], encoder, self.tokens[:1], self.logits[:1], refine)


def verify(bundle: Bundle, threads: int | None = None, captioner: Captioner | None = None) -> VerifyReport:
    """Run every golden photograph through the bundle here, the logits with this machine's own encoder outputs.

    Through the `captioner` of that bundle if one is given, such as one whose encoder goes through a delegate.

    Greedy tokens must be equal, except where the golden logits themselves were nearly tied: at the first difference
    their two greatest lie closer than the tolerance times the RMS of all around their mean. Raises BundleError,
    InterpreterError.
    """
    golden = read_golden(bundle)
    captioner = captioner or Captioner(bundle, threads)
    problems = []
    equal = 0
    for i, image in enumerate(golden.images):
        expected = [int(token) for token in golden.tokens[i] if token >= 0]
        try:
            tokens = list(captioner.caption(image).tokens)
        except InterpreterError as error:  # logits that are no numbers; the tensors below say which
            problems.append(f"photograph {i}: {error}")
            continue
        if tokens == expected:
            equal += 1
        elif not _nearly_tied(tokens, expected, golden.logits[i], bundle.manifest):
            problems.append(f"photograph {i}: tokens {tokens}, expected {expected}")
    tolerance = bundle.manifest.golden.tolerance
    return VerifyReport(tolerance, len(golden.images), equal, compare_tensors(captioner, golden), tuple(problems))


def compare_tensors(captioner: Captioner, golden: Golden) -> tuple[TensorCheck, ...]:
    """The encoder's outputs, the logits along the golden tokens and the parallel pass, where there is one, as computed
    here against the golden vectors. Raises InterpreterError.
    """
    manifest = captioner.bundle.manifest
    encoded = [captioner.encode(image) for image in golden.images]
    sides = {  # name: (here, golden)
        f"encoder/{name}": (np.concatenate([one[name] for one in encoded]), array)
        for name, array in golden.encoder.items()
    }
    logits = [_logits_along(captioner, *pair) for pair in zip(encoded, golden.tokens, strict=True)]
    sides["logits"] = (
        _comparable(np.concatenate(logits), manifest),
        _comparable(golden.logits[golden.tokens >= 0], manifest),
    )
    if golden.refine is not None:
        refined = np.stack([_refined(captioner, *pair) for pair in zip(encoded, golden.tokens, strict=True)])
        sides["refine"] = (_comparable(refined, manifest), _comparable(golden.refine, manifest))
    return tuple(_check(name, *pair, manifest.golden.tolerance) for name, pair in sides.items())


def read_golden(bundle: Bundle) -> Golden:
    """Read `golden.npz` without trusting it: no pickles, and nothing larger than what the manifest allows.

    Raises BundleError naming the array.
    """
    manifest = bundle.manifest
    where = f"{bundle.location}/{manifest.golden.file}"
    image, size = manifest.image, manifest.vocabulary.size
    try:
        with zipfile.ZipFile(io.BytesIO(bundle.read(manifest.golden.file))) as archive:
            images = _read_array(archive, "images", "uint8", (None, image.height, image.width, 3), where)
            count = len(images)
            tokens = _read_array(archive, "tokens", "int32", (count, None), where)
            logits = _read_array(archive, "logits", "float32", (count, tokens.shape[1], size), where)
            encoder = {
                spec.name: _read_array(archive, f"encoder/{spec.name}", "float32", (count, *spec.shape[1:]), where)
                for spec in manifest.graphs["encoder"].outputs
            }
            refine = None
            if "refine" in manifest.graphs and manifest.format >= (1, 2):
                refine = _read_array(archive, "refine", "float32", (count, size), where)
    except BundleError:
        raise
    except Exception as error:  # damaged zips, and headers that NumPy parses as Python, raise nearly anything
        raise BundleError(f"{where}: not readable as golden vectors ({error}). Export the bundle again.") from None
    ended = np.maximum.accumulate(tokens < 0, axis=1)
    beyond = tokens.shape[1] > manifest.decoding.max_length or tokens.max() >= size or tokens[:, 0].min() < 0
    if beyond or (tokens[ended] != -1).any():
        raise BundleError(
            f"{where}: tokens are not rows of 1 to {manifest.decoding.max_length} ids below {size}, -1 after the end. "
            f"Export the bundle again."
        )
    return Golden(images, encoder, tokens, logits, refine)


def _logits_along(captioner: Captioner, encoded: Encoded, tokens: npt.NDArray[np.int32]) -> _Array:
    """The logits (steps, V) of one photograph with its golden tokens (T,), -1 after the end, fed one after another."""
    loop = captioner.decoder
    loop.begin(encoded)
    fed, found = captioner.bundle.manifest.decoding.start_id, []
    for position, token in enumerate(tokens[tokens >= 0]):
        loop.step(fed, position)
        found.append(loop.logits[0].copy())
        loop.advance(position)
        fed = int(token)
    return np.stack(found)


def _refined(captioner: Captioner, encoded: Encoded, tokens: npt.NDArray[np.int32]) -> _Array:
    """The logits (V,) of the pass over one photograph's golden tokens (T,)."""
    spec = captioner.bundle.manifest.decoding
    refine = captioner.refiner("verify")
    refine.begin(encoded)
    return golden_pass(refine, spec, [int(token) for token in tokens if token >= 0 and token != spec.end_id])


def _read_array(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int | None, ...], where: str
) -> npt.NDArray[Any]:
    """One array of an .npz; its type and shape are checked from its header, before the data is decompressed."""
    if f"{name}.npy" not in archive.namelist():
        raise BundleError(f"{where}: the array {name!r} is missing. Export the bundle again.")
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
        else:
            found_shape, fortran, found_dtype = np.lib.format.read_array_header_2_0(file)
        fits = len(found_shape) == len(shape) and all(
            found == want if want is not None else found >= 1 for found, want in zip(found_shape, shape, strict=True)
        )
        expected = np.dtype(dtype).newbyteorder("<")
        size_bytes = prod(found_shape) * expected.itemsize
        if not fits or found_dtype != expected or fortran or size_bytes > MAX_ARRAY_BYTES:
            wanted = ["any" if size is None else size for size in shape]
            raise BundleError(
                f"{where}: the array {name!r} is {found_dtype} {list(found_shape)}, expected {dtype} {wanted}, at most "
                f"{MAX_ARRAY_BYTES} bytes. Export the bundle again."
            )
        data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise BundleError(f"{where}: the array {name!r} is cut short. Export the bundle again.")
    return np.frombuffer(data, expected).reshape(found_shape)


def _check(name: str, here: _Array, golden: _Array, tolerance: float) -> TensorCheck:
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite here has an error that is no number
        error = _rms(here - golden) / max(_rms(golden), 1e-6)
    return TensorCheck(name, error, error <= tolerance)  # NaN is not within any tolerance


def _rms(values: _Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _nearly_tied(tokens: list[int], expected: list[int], logits: _Array, manifest: Manifest) -> bool:
    """Whether the golden logits (T, V) excuse the first difference between two greedy decodings."""
    differing = (i for i, (ours, theirs) in enumerate(zip(tokens, expected, strict=False)) if ours != theirs)
    first = next(differing, None)
    if first is None:  # one is the beginning of the other: the loop ended where it should not, or the reverse
        return False
    deciding = _comparable(logits[first], manifest)
    second, top = np.sort(deciding)[-2:]
    return bool(top - second < manifest.golden.tolerance * _rms(deciding))


def _comparable(logits: _Array, manifest: Manifest) -> _Array:
    """What of logits (..., V) decides: without banned words, which can hold -1e4, and less each row's mean.

    An RMS with the banned words would be theirs alone; the mean of a row, often ten times what parts its words, changes
    no probability.
    """
    allowed = np.delete(logits, manifest.decoding.suppressed_ids, axis=-1)
    centred: _Array = allowed - allowed.mean(axis=-1, keepdims=True)
    return centred
