"""The ops of a graph that can be quantized, in groups to be treated alike: blocks of an encoder, layers of a decoder.

Groups are found in the file. Layers tell by their names what belongs together ("block3_expand", "block3_project");
where names only count ("conv2d_17"), a group is a run of ops between two joins, as residual sums are; and very long
graphs without either are cut into runs of equal length. Tables of embeddings and the output head stand alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from captionlite.export.tflite_file import Op, output_names, read_ops, stored_sizes

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE")
WEIGHTED = (*CONVOLUTIONS, "FULLY_CONNECTED", "BATCH_MATMUL", "GATHER")
TABLES = ("GATHER",)
# What stands between convolutions and has an integer kernel: left float32, it makes its neighbours convert.
JOINING = ("ADD", "CONCATENATION", "AVERAGE_POOL_2D", "MAX_POOL_2D")
JOINS = "joins"
MOST_GROUPS = 32

_ANONYMOUS = re.compile(r"StatefulPartitionedCall|PartitionedCall|Identity(_\d+)?$|arith\.constant|Const(_\d+)?$")


@dataclasses.dataclass(frozen=True)
class Group:
    """Ops of one graph that are quantized together. ``weights_bytes``: what they store in float32, biases included."""

    graph: str
    name: str
    ops: tuple[Op, ...]
    weights_bytes: int

    @property
    def key(self) -> str:
        """Unique in a bundle."""
        return f"{self.graph}/{self.name}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of its ops, each once, in order."""
        return tuple(dict.fromkeys(op.name for op in self.ops))

    @property
    def joins(self) -> bool:
        """Whether these are the ops between convolutions, which have no weights of their own."""
        return self.name == JOINS


def find_groups(content: bytes, graph: str) -> list[Group]:
    """The groups of a float32 file: every op of `quantizable` is in exactly one."""
    ops, sizes = read_ops(content), stored_sizes(content)
    weighted = [i for i, op in enumerate(ops) if _has_weights(op, sizes)]
    heads = output_names(content)
    alone = [i for i in weighted if ops[i].name in TABLES or heads & ops[i].outputs.keys()]
    names = {i: _layer(ops[i], sizes) for i in weighted}
    shared = _shared_root([names[i] for i in weighted if i not in alone])
    keys = {i: _block(names[i], shared) for i in weighted}
    members: dict[str, list[int]] = {}
    for i in weighted:
        if i not in alone:
            members.setdefault(keys[i], []).append(i)
    named = [run for run in members.values() if len(run) > 1]
    single = {run[0] for run in members.values() if len(run) == 1}
    runs = [*named, *([i] for i in alone), *_runs(ops, weighted, single)]
    while len(runs) > MOST_GROUPS:
        runs = _halved(sorted(runs), set(alone))
    found: list[Group] = []
    for run in sorted(runs):
        label = _label([keys[i] for i in run])
        found.append(_group(graph, _unique(label, found), [ops[i] for i in run], sizes))
    joining = _joining(ops, sizes)
    if joining:
        found.append(_group(graph, JOINS, joining, sizes))
    return found


def quantizable(content: bytes) -> list[Op]:
    """The ops that hold float32 weights and have kernels for others, and those that join convolutions."""
    ops, sizes = read_ops(content), stored_sizes(content)
    return [*(op for op in ops if _has_weights(op, sizes)), *_joining(ops, sizes)]


def expression(members: Iterable[Op], ops: Sequence[Op]) -> str:
    """A regular expression that finds, of ``ops`` (all of one kind), the scopes of ``members`` and no others.

    As short as can be: a word that only they have ("block3_"), else the beginning of each scope.
    """
    inside = list(members)
    wanted = {op.scope for op in inside}
    outside = [op.scope for op in ops if op.scope not in wanted]
    if not outside:
        return ".*"
    for word in _words(inside[0].scope):
        if all(word in scope for scope in wanted) and not any(word in scope for scope in outside):
            return re.escape(word)
    parts = []
    for op in inside:
        start = f"^{re.escape(next(iter(op.outputs)).split(';')[0])};"
        alone = sum(bool(re.search(start, other.scope)) for other in ops) == 1
        parts.append(start if alone else f"^{re.escape(op.scope)}$")
    return "|".join(parts)


def _words(scope: str) -> list[str]:
    """Fragments of a scope to try, shortest first: its numbered beginnings ("block3_"), then components ("key_1/")."""
    first = scope.split(";")[0]
    found = []
    for part in first.split("/"):
        numbered = _numbered(part)
        found += [f"{numbered}_"] if numbered else []
    return [*found, *(f"{part}/" for part in first.split("/")[:-1])]


def _has_weights(op: Op, sizes: dict[str, int]) -> bool:
    return op.name in WEIGHTED and any(name in sizes for name in op.inputs)


def _layer(op: Op, sizes: dict[str, int]) -> str:
    """What the op is called: its output, or its weights where the output is one of the graph's, which have no names."""
    output = next(iter(op.outputs)).split(";")[0]
    if _ANONYMOUS.match(output):
        stored = [name for name in op.inputs if name in sizes]
        return next((name for name in stored if not _ANONYMOUS.match(name)), "output").split(";")[0]
    return output


def _shared_root(names: list[str]) -> str:
    """The beginning of a path that most of the names share: the model around the layers, "" where there is none."""
    root = ""
    while True:
        heads = [name.removeprefix(root).split("/")[0] for name in names if name.startswith(root)]
        common = max(set(heads), key=heads.count, default="")
        below = [name.removeprefix(f"{root}{common}/") for name in names if name.startswith(f"{root}{common}/")]
        layers = {name.split("/")[0] for name in below if "/" in name}
        if len(below) <= 0.6 * len(names) or len(layers) < 2:  # a cell's own products are no layers
            return root
        root += f"{common}/"


def _block(name: str, root: str) -> str:
    """The part of a layer's name that the layers of its block share; its own where it is in no block."""
    part = name.removeprefix(root).split("/")[0]
    return _numbered(part) or part


def _numbered(part: str) -> str | None:
    """The block that a layer's name begins with, up to its number; None where no word follows the number.

    "block3_expand_conv_1" -> "block3", "block_1_expand" -> "block_1", "conv2_block1_1_conv" -> "conv2_block1".
    """
    words = part.split("_")
    for i, word in enumerate(words):
        if not word[-1:].isdigit() or not any(map(str.isalpha, "".join(words[i + 1 :]))):
            continue
        while (
            words[i + 1][:1].isalpha()
            and words[i + 1][-1:].isdigit()
            and any(map(str.isalpha, "".join(words[i + 2 :])))
        ):
            i += 1
        return "_".join(words[: i + 1])
    return None


def _runs(ops: Sequence[Op], weighted: Sequence[int], single: set[int]) -> list[list[int]]:
    """Ops that no name ties together, in runs that end where two branches join or another group's op stands."""
    produced = {name for op in ops for name in op.outputs}
    weighed = {name for i in weighted for name in ops[i].outputs}
    runs: list[list[int]] = []
    open_run = False
    for i, op in enumerate(ops):
        if i in single:
            if open_run:
                runs[-1].append(i)
            else:
                runs.append([i])
            open_run = True
        elif i in weighted or (op.name in ("ADD", "CONCATENATION") and _joins_branches(op, produced, weighed)):
            open_run = False
    return runs


def _joins_branches(op: Op, produced: set[str], weighed: set[str]) -> bool:
    """Whether what weights have made comes together here with what was made elsewhere."""
    return len(op.inputs.keys() & produced) > 1 and bool(op.inputs.keys() & weighed)


def _halved(runs: list[list[int]], alone: set[int]) -> list[list[int]]:
    """Neighbours two by two, but for those that stand alone."""
    found: list[list[int]] = []
    waiting = False
    for run in runs:
        if run[0] in alone:
            found.append(run)
        elif waiting:
            at = next(k for k in range(len(found) - 1, -1, -1) if found[k][0] not in alone)
            found[at] = found[at] + run
            waiting = False
        else:
            found.append(run)
            waiting = True
    return found


def _joining(ops: Sequence[Op], sizes: dict[str, int]) -> list[Op]:
    """Joins all of whose inputs come from convolutions or from such joins: none inside a normalisation."""
    convolved: set[str] = set()
    found = []
    for op in ops:
        if op.name in CONVOLUTIONS and _has_weights(op, sizes):
            convolved |= op.outputs.keys()
        elif op.name in JOINING and op.inputs.keys() <= convolved:
            convolved |= op.outputs.keys()
            found.append(op)
    return found


def _group(graph: str, name: str, ops: list[Op], sizes: dict[str, int]) -> Group:
    stored = {name for op in ops for name in op.inputs if name in sizes}
    return Group(graph, name, tuple(ops), sum(sizes[name] for name in stored))


def _label(keys: list[str]) -> str:
    distinct = list(dict.fromkeys(keys))
    return distinct[0] if len(distinct) == 1 else f"{distinct[0]}..{distinct[-1]}"


def _unique(label: str, found: list[Group]) -> str:
    taken = {group.name for group in found}
    number = 2
    name = label
    while name in taken:
        name, number = f"{label} ({number})", number + 1
    return name
