"""Two patterns that tf2onnx leaves in a Keras graph, put back into one operation each.

ONNX Runtime fuses layer normalization by itself, but not as Keras writes it (x * s + (beta - mean * s)), and Keras
guards every embedding against negative indices, which the operator Gather allows anyway. On the default model's int8
step the two are half of all operations.
"""

from __future__ import annotations

from typing import Any


class _Links:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, graph: Any) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in set(node.input):
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}

    def reader(self, name: str, kind: str, also: str | None = None) -> Any:
        """The only reader of that kind (which reads `also` as well), or None."""
        found = [n for n in self.readers.get(name, ()) if n.op_type == kind and (also is None or also in n.input)]
        return found[0] if len(found) == 1 else None

    def constant(self, node: Any) -> Any:
        """The only constant that a node reads, or None."""
        found = [self.constants[name] for name in node.input if name in self.constants]
        return found[0] if len(found) == 1 else None


def tidy(model: Any) -> tuple[int, int]:
    """Change an onnx.ModelProto in place; how many normalizations and how many guarded indices there were."""
    graph = model.graph
    links = _Links(graph)
    normalizations = sum(
        _normalization(graph, links, node) for node in list(graph.node) if node.op_type == "ReduceMean"
    )
    indices = sum(_index(links, node) for node in graph.node if node.op_type == "Gather")
    _drop_unused(graph)
    return normalizations, indices


def _normalization(graph: Any, links: _Links, mean: Any) -> bool:
    """Turns the last Add of a layer normalization that begins with this mean into the operator."""
    from onnx import helper, numpy_helper

    x = mean.input[0]
    negative = links.reader(mean.output[0], "Neg")
    node = links.reader(mean.output[0], "Sub")
    for kind in ("Mul", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul"):
        if node is None:
            return False
        if kind == "Sqrt":
            epsilon = links.constant(node)  # node is the Add of the variance and epsilon
        node = links.reader(node.output[0], kind)
    if node is None or negative is None or epsilon is None:
        return False
    scale = links.constant(node)
    scaled = links.reader(node.output[0], "Mul", x)
    shift = links.reader(node.output[0], "Mul", negative.output[0])
    shifted = None if shift is None else links.reader(shift.output[0], "Add")
    bias = None if shifted is None else links.constant(shifted)
    last = None if scaled is None or shifted is None else links.reader(scaled.output[0], "Add", shifted.output[0])
    if scale is None or bias is None or last is None:
        return False
    names = []
    for role, tensor in (("scale", scale), ("bias", bias)):
        names.append(f"{last.name}/{role}")
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor).reshape(-1), names[-1]))
    last.op_type = "LayerNormalization"
    del last.input[:]
    last.input.extend([x, *names])
    last.attribute.append(helper.make_attribute("axis", -1))
    last.attribute.append(helper.make_attribute("epsilon", float(numpy_helper.to_array(epsilon).item())))
    return True


def _index(links: _Links, gather: Any) -> bool:
    """Lets a Gather read i itself where it reads (i < 0) * (i + n) + (i >= 0) * i."""
    chosen = links.makers.get(gather.input[1])
    if chosen is None or chosen.op_type != "Add":
        return False
    sides: list[Any] = [links.makers.get(name) for name in chosen.input]
    if any(side is None or side.op_type != "Mul" for side in sides):
        return False
    for wrapped, plain in (sides, sides[::-1]):
        for name in wrapped.input:
            added = links.makers.get(name)
            common = set() if added is None or added.op_type != "Add" else set(added.input) & set(plain.input)
            if common:
                gather.input[1] = common.pop()
                return True
    return False


def _drop_unused(graph: Any) -> None:
    while True:
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        unused = [node for node in graph.node if not read & set(node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
