"""The parts of `manifest.json` as frozen dataclasses, and the strict reading of each from JSON.

Every `read_*` takes the JSON value's Node; what is missing, of the wrong type or out of range raises BundleError with
its JSON path. `extra` says whether fields that this format does not know are tolerated.
"""

import re
from dataclasses import dataclass
from math import prod

from captionlite.runtime.errors import BundleError
from captionlite.runtime.jsonreader import Node

DTYPES = ("float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")
STATE_KINDS = ("constant", "carried", "appended")
VOCABULARY_KINDS = ("words", "sentencepiece")
MANIFEST_FILE = "manifest.json"
MAX_FILE_BYTES = 1 << 31
MAX_DIMENSION = 1 << 20
MAX_ELEMENTS = 1 << 28
MAX_STEPS = 4096
MAX_PROVEN = 64
MAX_LABELS = 1 << 15
MAX_COEFFICIENT = 1e6  # of the confidence: far beyond any fit, and slope * logprob stays a finite number
MAX_LENGTH_PENALTY = 10.0  # a caption of 20 tokens divided by 20 ** 10 still is a number


# A file name is one plain component: no separators, no drive, no leading dot, nothing a shell or a zip could misread.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. None in `shape` is the batch dimension, which the runtime chooses."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class StateSpec:
    """One row of the state table: how a decoder input is fed from step to step (see the package's design page)."""

    name: str
    kind: str  # constant, carried or appended
    dtype: str
    shape: Shape
    axis: int | None  # the axis that grows; appended rows only


@dataclass(frozen=True)
class GraphSpec:
    """One TensorFlow Lite file: its quantization recipe and what goes in and out by name."""

    file: str
    recipe: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def output(self, name: str) -> TensorSpec | None:
        """The output of that name, or None."""
        return next((spec for spec in self.outputs if spec.name == name), None)


@dataclass(frozen=True)
class ImageSpec:
    """What the encoder wants to see, in pixels: the whole frame squashed to height x width, no crop."""

    height: int
    width: int
    resize: str = "squash"
    resample: str = "bilinear"


@dataclass(frozen=True)
class VocabularySpec:
    """The vocabulary file, how its pieces join into text, and how many there are."""

    file: str
    kind: str
    size: int


@dataclass(frozen=True)
class ConfidenceSpec:
    """How a caption's mean log-probability became a probability that it is right, in the sense of `event`.

    confidence = 1 / (1 + exp(-(slope * mean_logprob + intercept))), fitted on the captions that `fitted_on` names.
    """

    slope: float
    intercept: float
    event: str
    fitted_on: str


@dataclass(frozen=True)
class DecodingSpec:
    """Special token ids, ids that must never be chosen, and the largest number of decoder steps."""

    start_id: int
    end_id: int
    pad_id: int
    unknown_id: int
    suppressed_ids: tuple[int, ...]
    max_length: int
    mask_id: int | None = None  # families that predict all positions at once; they have a graph "refine"
    confidence: ConfidenceSpec | None = None
    length_penalty: float | None = None  # `DecodingOptions.length_penalty` where the options give none; 1 without it


@dataclass(frozen=True)
class AttentionSpec:
    """How the regions of the decoder's attention lie in the photograph: a grid (rows, columns) over the whole frame."""

    grid: tuple[int, int]


@dataclass(frozen=True)
class LabelsSpec:
    """What the encoder's classifier sees, beside the caption: an output of logits (1, size) and its labels' file.

    A label of at least `least_probability` is worth a word when the caption's confidence is below `below_confidence`;
    beside a caption that names people, of at least `least_beside_people`: a classifier that has no class for them
    guesses at what they wear and hold.
    """

    file: str
    output: str
    size: int
    source: str
    least_probability: float
    least_beside_people: float
    below_confidence: float


@dataclass(frozen=True)
class GoldenSpec:
    """The golden vectors and the relative RMS error within which a machine must reproduce them."""

    file: str
    tolerance: float


@dataclass(frozen=True)
class ProvenSpec:
    """An interpreter, its version and a machine, as `platform.machine()` names it, that computed the golden vectors."""

    interpreter: str
    version: str
    machine: str

    def __str__(self) -> str:
        return f"{self.interpreter} {self.version} on {self.machine}"


@dataclass(frozen=True)
class FileSpec:
    """Checksum (hexadecimal) and size of one file of the bundle."""

    sha256: str
    size_bytes: int


def _file_name(node: Node) -> str:
    name = node.text()
    _check_file_name(name, node.path, node.where)
    return name


def _check_file_name(name: str, path: str, where: str) -> None:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST_FILE:
        raise BundleError(
            f"{where}: {path} names the file {name!r}, expected a plain file name in the bundle itself (letters, "
            f"digits, '_', '-' and '.', no folders). Do not use this bundle unless you know where it comes from."
        )


def _read_shape(node: Node) -> Shape:
    """Dimensions, None first for the batch; at most rank 4, because the interpreter is slow above."""
    shape = node.list_of(lambda entry: None if entry.value is None else entry.integer(1, MAX_DIMENSION))
    if not 1 <= len(shape) <= 4 or None in shape[1:] or prod(size or 1 for size in shape) > MAX_ELEMENTS:
        raise node.fail(f"1 to 4 dimensions, only the first of them null, at most {MAX_ELEMENTS} elements")
    return shape


def read_tensor(node: Node, extra: bool) -> TensorSpec:
    """One entry of a graph's inputs or outputs."""
    fields = node.fields("name", "dtype", "shape", allow_extra=extra)
    return TensorSpec(fields["name"].text(), fields["dtype"].choice(*DTYPES), _read_shape(fields["shape"]))


def read_state(node: Node, extra: bool) -> StateSpec:
    """One row of the state table, whose axis fits its kind and its shape."""
    fields = node.fields("name", "kind", "dtype", "shape", "axis", allow_extra=extra)
    shape = _read_shape(fields["shape"])
    if shape[0] is not None:
        raise fields["shape"].fail("a first dimension of null (the batch)")
    kind = fields["kind"].choice(*STATE_KINDS)
    axis = fields["axis"]
    if kind == "appended":
        axis.integer(1, len(shape) - 1)
    elif axis.value is not None:
        raise axis.fail(f"null, because only appended rows have an axis and this one is {kind}")
    return StateSpec(fields["name"].text(), kind, fields["dtype"].choice(*DTYPES), shape, axis.value)


def read_graph(node: Node, extra: bool) -> GraphSpec:
    """One entry of `graphs`."""
    fields = node.fields("file", "recipe", "inputs", "outputs", allow_extra=extra)
    return GraphSpec(
        file=_file_name(fields["file"]),
        recipe=fields["recipe"].text(),
        inputs=fields["inputs"].list_of(lambda entry: read_tensor(entry, extra)),
        outputs=fields["outputs"].list_of(lambda entry: read_tensor(entry, extra)),
    )


def read_file(name: str, node: Node, extra: bool) -> FileSpec:
    """One entry of `files`, whose key is the file's name."""
    _check_file_name(name, "files", node.where)
    fields = node.fields("sha256", "size_bytes", allow_extra=extra)
    sha256 = fields["sha256"].text()
    if not _SHA256.fullmatch(sha256):
        raise fields["sha256"].fail("64 lower-case hexadecimal digits")
    return FileSpec(sha256, fields["size_bytes"].integer(0, MAX_FILE_BYTES))


def read_image(node: Node, extra: bool) -> ImageSpec:
    """`image`."""
    fields = node.fields("height", "width", "resize", "resample", allow_extra=extra)
    return ImageSpec(
        height=fields["height"].integer(1, 4096),
        width=fields["width"].integer(1, 4096),
        resize=fields["resize"].choice("squash"),
        resample=fields["resample"].choice("bilinear"),
    )


def read_vocabulary(node: Node, extra: bool) -> VocabularySpec:
    """`vocabulary`."""
    fields = node.fields("file", "kind", "size", allow_extra=extra)
    return VocabularySpec(
        file=_file_name(fields["file"]),
        kind=fields["kind"].choice(*VOCABULARY_KINDS),
        size=fields["size"].integer(2, MAX_DIMENSION),
    )


def read_decoding(node: Node, vocabulary_size: int, extra: bool) -> DecodingSpec:
    """`decoding`; every token id in it is one of the vocabulary's."""
    fields = node.fields(
        "start_id", "end_id", "pad_id", "unknown_id", "suppressed_ids", "max_length",
        optional=("mask_id", "confidence", "length_penalty"), allow_extra=extra,
    )  # fmt: skip

    def token_id(node: Node) -> int:
        return node.integer(0, vocabulary_size - 1)

    return DecodingSpec(
        start_id=token_id(fields["start_id"]),
        end_id=token_id(fields["end_id"]),
        pad_id=token_id(fields["pad_id"]),
        unknown_id=token_id(fields["unknown_id"]),
        suppressed_ids=fields["suppressed_ids"].list_of(token_id),
        max_length=fields["max_length"].integer(1, MAX_STEPS),
        mask_id=token_id(fields["mask_id"]) if "mask_id" in fields else None,
        confidence=read_confidence(fields["confidence"], extra) if "confidence" in fields else None,
        length_penalty=fields["length_penalty"].number(0.0, MAX_LENGTH_PENALTY) if "length_penalty" in fields else None,
    )


def read_confidence(node: Node, extra: bool) -> ConfidenceSpec:
    """`decoding.confidence`. A negative slope would trust a caption more the less likely it is."""
    fields = node.fields("slope", "intercept", "event", "fitted_on", allow_extra=extra)
    return ConfidenceSpec(
        slope=fields["slope"].number(0.0, MAX_COEFFICIENT),
        intercept=fields["intercept"].number(-MAX_COEFFICIENT, MAX_COEFFICIENT),
        event=fields["event"].text(),
        fitted_on=fields["fitted_on"].text(),
    )


def read_attention(node: Node, extra: bool) -> AttentionSpec:
    """`attention`."""
    grid = node.fields("grid", allow_extra=extra)["grid"]
    sizes = grid.list_of(lambda entry: entry.integer(1, MAX_DIMENSION))
    if len(sizes) != 2:
        raise grid.fail("two integers, the rows and columns of the grid")
    return AttentionSpec((sizes[0], sizes[1]))


def read_labels(node: Node, extra: bool) -> LabelsSpec:
    """`labels`."""
    fields = node.fields(
        "file", "output", "size", "source", "least_probability", "least_beside_people", "below_confidence",
        allow_extra=extra,
    )  # fmt: skip
    return LabelsSpec(
        file=_file_name(fields["file"]),
        output=fields["output"].text(),
        size=fields["size"].integer(2, MAX_LABELS),
        source=fields["source"].text(),
        least_probability=fields["least_probability"].number(0.0, 1.0),
        least_beside_people=fields["least_beside_people"].number(0.0, 1.0),
        below_confidence=fields["below_confidence"].number(0.0, 1.0),
    )


def read_golden(node: Node, extra: bool) -> GoldenSpec:
    """`golden`."""
    fields = node.fields("file", "tolerance", allow_extra=extra)
    return GoldenSpec(_file_name(fields["file"]), fields["tolerance"].number(0.0, 1.0))


def read_proven(node: Node, extra: bool) -> tuple[ProvenSpec, ...]:
    """`proven`."""

    def row(node: Node) -> ProvenSpec:
        fields = node.fields("interpreter", "version", "machine", allow_extra=extra)
        return ProvenSpec(*(fields[name].text(100) for name in ("interpreter", "version", "machine")))

    return node.list_of(row, MAX_PROVEN)
