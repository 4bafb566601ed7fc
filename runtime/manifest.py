"""What a bundle says about itself: `manifest.json` as frozen dataclasses, read strictly and checked for consistency.

Everything here happens before an interpreter sees a file, and with the standard library alone.
"""

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

from captionlite.runtime.errors import BundleError
from captionlite.runtime.jsonreader import Node

FORMAT = (1, 1)
"""Format version (major, minor) that this captionlite writes; it reads every minor version of this major one.

1.1 added the graph `refine`, `decoding.mask_id` and SentencePiece vocabularies.
"""

DTYPES = ("float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")
STATE_KINDS = ("constant", "carried", "appended")
VOCABULARY_KINDS = ("words", "sentencepiece")
MANIFEST_FILE = "manifest.json"
MAX_FILE_BYTES = 1 << 31
MAX_DIMENSION = 1 << 20
MAX_ELEMENTS = 1 << 28
MAX_STEPS = 4096

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
class DecodingSpec:
    """Special token ids, ids that must never be chosen, and the largest number of decoder steps."""

    start_id: int
    end_id: int
    pad_id: int
    unknown_id: int
    suppressed_ids: tuple[int, ...]
    max_length: int
    mask_id: int | None = None  # families that predict all positions at once; they have a graph "refine"


@dataclass(frozen=True)
class GoldenSpec:
    """The golden vectors and the relative RMS error within which a machine must reproduce them."""

    file: str
    tolerance: float


@dataclass(frozen=True)
class FileSpec:
    """Checksum (hexadecimal) and size of one file of the bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`. `files` names every file of the bundle but the manifest itself."""

    format: tuple[int, int]
    name: str
    family: str
    graphs: dict[str, GraphSpec]
    state: tuple[StateSpec, ...]
    image: ImageSpec
    vocabulary: VocabularySpec
    decoding: DecodingSpec
    golden: GoldenSpec
    files: dict[str, FileSpec] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads back to an equal manifest."""
        return {
            "format": list(self.format),
            "name": self.name,
            "family": self.family,
            "graphs": {
                name: {
                    "file": graph.file,
                    "recipe": graph.recipe,
                    "inputs": [_tensor_json(spec) for spec in graph.inputs],
                    "outputs": [_tensor_json(spec) for spec in graph.outputs],
                }
                for name, graph in self.graphs.items()
            },
            "state": [
                {"name": row.name, "kind": row.kind, "dtype": row.dtype, "shape": list(row.shape), "axis": row.axis}
                for row in self.state
            ],
            "image": dict(vars(self.image)),
            "vocabulary": dict(vars(self.vocabulary)),
            "decoding": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in vars(self.decoding).items()
                if value is not None
            },
            "golden": dict(vars(self.golden)),
            "files": {name: dict(vars(spec)) for name, spec in self.files.items()},
            "provenance": self.provenance,
            "scores": self.scores,
        }

    @classmethod
    def from_json(cls, obj: Any, where: str) -> "Manifest":
        """Read and check a parsed manifest; `where` names its file in errors.

        Raises BundleError for a newer major format, for any field that is missing, of the wrong type or out of range,
        for an unknown field (a newer minor format may have some) and for parts that contradict each other.
        """
        top = Node(obj, "", where)
        version = _read_format(top)
        extra = version[1] > FORMAT[1]  # a newer minor version may add fields that this reader need not know
        fields = top.fields(
            "format", "name", "family", "graphs", "state", "image", "vocabulary", "decoding", "golden", "files",
            "provenance", "scores", allow_extra=extra,
        )  # fmt: skip
        graphs = fields["graphs"].fields("encoder", "decoder", optional=("refine",), allow_extra=extra)
        image = fields["image"].fields("height", "width", "resize", "resample", allow_extra=extra)
        vocabulary = fields["vocabulary"].fields("file", "kind", "size", allow_extra=extra)
        decoding = fields["decoding"].fields(
            "start_id", "end_id", "pad_id", "unknown_id", "suppressed_ids", "max_length", optional=("mask_id",),
            allow_extra=extra,
        )  # fmt: skip
        golden = fields["golden"].fields("file", "tolerance", allow_extra=extra)
        size = vocabulary["size"].integer(2, MAX_DIMENSION)

        def token_id(node: Node) -> int:
            return node.integer(0, size - 1)

        manifest = cls(
            format=version,
            name=fields["name"].text(),
            family=fields["family"].text(),
            graphs={name: _read_graph(node, extra) for name, node in graphs.items()},
            state=fields["state"].list_of(lambda node: _read_state(node, extra)),
            image=ImageSpec(
                height=image["height"].integer(1, 4096),
                width=image["width"].integer(1, 4096),
                resize=image["resize"].choice("squash"),
                resample=image["resample"].choice("bilinear"),
            ),
            vocabulary=VocabularySpec(
                file=_file_name(vocabulary["file"]), kind=vocabulary["kind"].choice(*VOCABULARY_KINDS), size=size
            ),
            decoding=DecodingSpec(
                start_id=token_id(decoding["start_id"]),
                end_id=token_id(decoding["end_id"]),
                pad_id=token_id(decoding["pad_id"]),
                unknown_id=token_id(decoding["unknown_id"]),
                suppressed_ids=decoding["suppressed_ids"].list_of(token_id),
                max_length=decoding["max_length"].integer(1, MAX_STEPS),
                mask_id=token_id(decoding["mask_id"]) if "mask_id" in decoding else None,
            ),
            golden=GoldenSpec(_file_name(golden["file"]), golden["tolerance"].number(0.0, 1.0)),
            files={name: _read_file(name, node, extra) for name, node in fields["files"].items().items()},
            provenance={name: node.value for name, node in fields["provenance"].items().items()},
            scores={name: node.value for name, node in fields["scores"].items().items()},
        )
        _check(manifest, where)
        return manifest


def _tensor_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _read_format(top: Node) -> tuple[int, int]:
    """Read the version first and alone, so that a newer bundle is told from a damaged one."""
    numbers = top.fields("format", allow_extra=True)["format"]
    version = numbers.list_of(lambda node: node.integer(0, 1 << 16))
    if len(version) != 2:
        raise numbers.fail("two integers, major and minor")
    if version[0] != FORMAT[0]:
        newer = version[0] > FORMAT[0]
        step = "Upgrade with `pip install --upgrade captionlite`." if newer else "Export the bundle again."
        raise BundleError(
            f"{top.where}: format is {version[0]}.{version[1]}, but this captionlite reads format {FORMAT[0]}.x. {step}"
        )
    return version[0], version[1]


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


def _read_tensor(node: Node, extra: bool) -> TensorSpec:
    fields = node.fields("name", "dtype", "shape", allow_extra=extra)
    return TensorSpec(fields["name"].text(), fields["dtype"].choice(*DTYPES), _read_shape(fields["shape"]))


def _read_state(node: Node, extra: bool) -> StateSpec:
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


def _read_graph(node: Node, extra: bool) -> GraphSpec:
    fields = node.fields("file", "recipe", "inputs", "outputs", allow_extra=extra)
    return GraphSpec(
        file=_file_name(fields["file"]),
        recipe=fields["recipe"].text(),
        inputs=fields["inputs"].list_of(lambda entry: _read_tensor(entry, extra)),
        outputs=fields["outputs"].list_of(lambda entry: _read_tensor(entry, extra)),
    )


def _read_file(name: str, node: Node, extra: bool) -> FileSpec:
    _check_file_name(name, "files", node.where)
    fields = node.fields("sha256", "size_bytes", allow_extra=extra)
    sha256 = fields["sha256"].text()
    if not _SHA256.fullmatch(sha256):
        raise fields["sha256"].fail("64 lower-case hexadecimal digits")
    return FileSpec(sha256, fields["size_bytes"].integer(0, MAX_FILE_BYTES))


def _check(manifest: Manifest, where: str) -> None:
    """Refuse a manifest whose parts contradict each other: the decoding loop relies on all of this."""

    def need(holds: bool, problem: str) -> None:
        if not holds:
            raise BundleError(f"{where}: {problem}. Export the bundle again.")

    encoder, decoder = manifest.graphs["encoder"], manifest.graphs["decoder"]
    for place, names in (
        ("graphs.encoder.inputs", [spec.name for spec in encoder.inputs]),
        ("graphs.encoder.outputs", [spec.name for spec in encoder.outputs]),
        ("graphs.decoder.inputs", [spec.name for spec in decoder.inputs]),
        ("graphs.decoder.outputs", [spec.name for spec in decoder.outputs]),
        *((f"graphs.refine.{side}", [spec.name for spec in specs]) for side, specs in _sides(manifest, "refine")),
        ("state", [row.name for row in manifest.state]),
        ("files", [name.lower() for name in manifest.files]),  # some file systems do not tell case
        ("decoding.suppressed_ids", list(map(str, manifest.decoding.suppressed_ids))),
    ):
        repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        need(not repeated, f"{place} has {', '.join(repeated)} twice")

    image = TensorSpec("image", "uint8", (1, manifest.image.height, manifest.image.width, 3))
    need(encoder.inputs == (image,), f"graphs.encoder.inputs is not exactly {image}, which the image spec asks for")

    rows = {row.name: row for row in manifest.state}
    expected_inputs = {
        "token": TensorSpec("token", "int32", (None, 1)),
        "position": TensorSpec("position", "int32", (1,)),
        **{row.name: TensorSpec(row.name, row.dtype, row.shape) for row in manifest.state},
    }
    need(not {"token", "position", "logits", "attention"} & rows.keys(), "state uses a name that the loop itself uses")
    _need_specs(need, "graphs.decoder.inputs", decoder.inputs, expected_inputs)

    expected_outputs = {"logits": TensorSpec("logits", "float32", (None, manifest.vocabulary.size))}
    attention = decoder.output("attention")
    if attention is not None:
        regions = attention.shape[-1]
        need(
            attention.dtype == "float32" and len(attention.shape) == 2 and attention.shape[0] is None,
            f"graphs.decoder.outputs: attention is {attention.dtype} {list(attention.shape)}, expected float32 "
            f"[null, {regions}]",
        )
        expected_outputs["attention"] = attention
    for row in manifest.state:
        shape = row.shape
        if row.axis is not None:
            need(
                shape[row.axis] == manifest.decoding.max_length,
                f"state {row.name}: size {shape[row.axis]} on axis {row.axis}, expected decoding.max_length "
                f"{manifest.decoding.max_length}",
            )
            shape = (*shape[: row.axis], 1, *shape[row.axis + 1 :])
        if row.kind != "constant":
            expected_outputs[row.name] = TensorSpec(row.name, row.dtype, shape)
    _need_specs(need, "graphs.decoder.outputs", decoder.outputs, expected_outputs)

    _check_refine(manifest, need)

    for spec in encoder.outputs:
        need(spec.name in rows, f"graphs.encoder.outputs: {spec.name} is no row of state")
        fitting = TensorSpec(spec.name, rows[spec.name].dtype, (1, *rows[spec.name].shape[1:]))
        need(spec == fitting, f"graphs.encoder.outputs: found {spec}, expected {fitting} as in state")
    for row in manifest.state:
        need(
            row.kind != "constant" or encoder.output(row.name) is not None,
            f"state {row.name} is constant, but no encoder output has that name",
        )

    decoding = manifest.decoding
    need(decoding.end_id not in decoding.suppressed_ids, "decoding.end_id is suppressed, so no caption could end")
    need(decoding.start_id != decoding.end_id, "decoding.start_id and decoding.end_id are the same")
    for name in (*(graph.file for graph in manifest.graphs.values()), manifest.vocabulary.file, manifest.golden.file):
        need(name in manifest.files, f"files does not list {name}")


def _sides(manifest: Manifest, name: str) -> tuple[tuple[str, tuple[TensorSpec, ...]], ...]:
    graph = manifest.graphs.get(name)
    return () if graph is None else (("inputs", graph.inputs), ("outputs", graph.outputs))


def _check_refine(manifest: Manifest, need: Any) -> None:
    """A parallel pass takes a whole caption and the constants, and predicts every position of it."""
    refine, decoding = manifest.graphs.get("refine"), manifest.decoding
    need((refine is None) == (decoding.mask_id is None), "graphs.refine and decoding.mask_id come together")
    if refine is None or decoding.mask_id is None:
        return
    need(
        decoding.mask_id in decoding.suppressed_ids,
        "decoding.mask_id is not in decoding.suppressed_ids, so captions could hold masks",
    )
    width = decoding.max_length + 1
    inputs = {"tokens": TensorSpec("tokens", "int32", (None, width))}
    inputs |= {r.name: TensorSpec(r.name, r.dtype, r.shape) for r in manifest.state if r.kind == "constant"}
    need("tokens" not in {row.name for row in manifest.state}, "state uses a name that the refine graph uses")
    _need_specs(need, "graphs.refine.inputs", refine.inputs, inputs)
    outputs = {"logits": TensorSpec("logits", "float32", (None, width, manifest.vocabulary.size))}
    if refine.output("length_logits") is not None:
        outputs["length_logits"] = TensorSpec("length_logits", "float32", (None, decoding.max_length))
    _need_specs(need, "graphs.refine.outputs", refine.outputs, outputs)


def _need_specs(need: Any, place: str, found: tuple[TensorSpec, ...], expected: dict[str, TensorSpec]) -> None:
    names = {spec.name for spec in found}
    need(names == expected.keys(), f"{place} names {sorted(names)}, expected {sorted(expected)} as in state")
    for spec in found:
        need(spec == expected[spec.name], f"{place}: found {spec}, expected {expected[spec.name]}")
