"""The whole of `manifest.json`: written as JSON, read back, and refused when its parts contradict each other.

Everything here happens before an interpreter sees a file, and with the standard library alone. The parts, and how each
is read, stand in specs.py.
"""

from dataclasses import dataclass, field
from typing import Any

from captionlite.runtime.errors import BundleError
from captionlite.runtime.jsonreader import Node
from captionlite.runtime.specs import (
    MANIFEST_FILE,
    MAX_DIMENSION,
    AttentionSpec,
    ConfidenceSpec,
    DecodingSpec,
    FileSpec,
    GoldenSpec,
    GraphSpec,
    ImageSpec,
    LabelsSpec,
    ProvenSpec,
    StateSpec,
    TensorSpec,
    VocabularySpec,
    read_attention,
    read_decoding,
    read_file,
    read_golden,
    read_graph,
    read_image,
    read_labels,
    read_proven,
    read_state,
    read_vocabulary,
)

__all__ = [
    "FORMAT",
    "MANIFEST_FILE",
    "MAX_DIMENSION",
    "AttentionSpec",
    "ConfidenceSpec",
    "DecodingSpec",
    "FileSpec",
    "GoldenSpec",
    "GraphSpec",
    "ImageSpec",
    "LabelsSpec",
    "Manifest",
    "ProvenSpec",
    "StateSpec",
    "TensorSpec",
    "VocabularySpec",
]

FORMAT = (1, 5)
"""Format version (major, minor) that this captionlite writes; it reads every minor version of this major one.

1.1 added the graph `refine`, `decoding.mask_id` and SentencePiece vocabularies; 1.2 `attention` and
`decoding.confidence`; 1.3 `proven`; 1.4 `decoding.length_penalty`; 1.5 `labels`.
"""


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
    attention: AttentionSpec | None = None  # families that attend to the cells of a grid
    labels: LabelsSpec | None = None  # an encoder that classifies as well
    proven: tuple[ProvenSpec, ...] = ()  # where the golden vectors were computed; elsewhere they are checked first
    files: dict[str, FileSpec] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads back to an equal manifest."""
        decoding = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self.decoding).items()
            if value is not None
        }
        if self.decoding.confidence is not None:
            decoding["confidence"] = dict(vars(self.decoding.confidence))
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
            "decoding": decoding,
            **({} if self.attention is None else {"attention": {"grid": list(self.attention.grid)}}),
            **({} if self.labels is None else {"labels": dict(vars(self.labels))}),
            "golden": dict(vars(self.golden)),
            **({"proven": [dict(vars(row)) for row in self.proven]} if self.proven else {}),
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
            "provenance", "scores", optional=("attention", "labels", "proven"), allow_extra=extra,
        )  # fmt: skip
        graphs = fields["graphs"].fields("encoder", "decoder", optional=("refine",), allow_extra=extra)
        vocabulary = read_vocabulary(fields["vocabulary"], extra)
        manifest = cls(
            format=version,
            name=fields["name"].text(),
            family=fields["family"].text(),
            graphs={name: read_graph(node, extra) for name, node in graphs.items()},
            state=fields["state"].list_of(lambda node: read_state(node, extra)),
            image=read_image(fields["image"], extra),
            vocabulary=vocabulary,
            decoding=read_decoding(fields["decoding"], vocabulary.size, extra),
            golden=read_golden(fields["golden"], extra),
            attention=read_attention(fields["attention"], extra) if "attention" in fields else None,
            labels=read_labels(fields["labels"], extra) if "labels" in fields else None,
            proven=read_proven(fields["proven"], extra) if "proven" in fields else (),
            files={name: read_file(name, node, extra) for name, node in fields["files"].items().items()},
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
        ("proven", list(map(str, manifest.proven))),
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
    _check_grid(manifest, need)
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

    _check_labels(manifest, need)
    for spec in encoder.outputs:
        if manifest.labels is not None and spec.name == manifest.labels.output:
            continue
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


def _check_grid(manifest: Manifest, need: Any) -> None:
    """The grid has a cell for each region that the decoder attends to; the decoder's attention has been checked."""
    if manifest.attention is None:
        return
    attention = manifest.graphs["decoder"].output("attention")
    need(attention is not None, "attention.grid is there, but graphs.decoder.outputs has no attention")
    if attention is not None:
        h, w = manifest.attention.grid
        regions = attention.shape[-1]
        need(h * w == regions, f"attention.grid is {h} x {w} = {h * w}, but the decoder attends to {regions} regions")


def _check_labels(manifest: Manifest, need: Any) -> None:
    """The labels' logits are an output of the encoder and no state of the decoder."""
    labels = manifest.labels
    if labels is None:
        return
    need(labels.output not in {row.name for row in manifest.state}, f"labels.output is the state {labels.output}")
    expected = TensorSpec(labels.output, "float32", (1, labels.size))
    found = manifest.graphs["encoder"].output(labels.output)
    need(found == expected, f"graphs.encoder.outputs: found {found}, expected {expected} as in labels")
    need(labels.file in manifest.files, f"files does not list {labels.file}")


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
