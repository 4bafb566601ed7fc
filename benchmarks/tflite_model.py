"""A TFLite file as the schema's objects, and back: to look into a graph, and to cut it."""

from __future__ import annotations

from typing import Any

import numpy as np

from captionlite.runtime.errors import InterpreterError


def tflite_schema() -> Any:
    """ai-edge-litert's reader and writer of the file format. Raises InterpreterError where it is not installed."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise InterpreterError(
            f"Looking into a TFLite file needs ai-edge-litert and its flatbuffers ({error}). Install it with "
            f"`pip install ai-edge-litert`; machines that it has no wheels for cannot be measured this way."
        ) from error
    return schema_py_generated


def load_model(content: bytes, where: str) -> Any:
    """The file's ModelT; data that stands behind the flatbuffer, as litert-quantizer leaves it, is put into its buffer.

    `where` names the file in errors. Raises InterpreterError for what is no TFLite file.
    """
    schema = tflite_schema()
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        for buffer in model.buffers:
            if buffer.data is None and buffer.offset > 1 and buffer.size:  # 0 and 1 mean: none
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
        if model.subgraphs[0].operators is None:
            raise ValueError("no ops")
    except (
        Exception
    ) as error:  # flatbuffers raises struct.error, TypeError, IndexError... by what the bytes happen to be
        raise InterpreterError(
            f"{where}: not readable as a TFLite file ({type(error).__name__}: {error}). Run `captionlite verify`."
        ) from error
    return model


def pack(model: Any) -> bytes:
    """The file of a ModelT."""
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def op_names(model: Any) -> list[str]:
    """The name of each op of the main subgraph; custom ops are named CUSTOM:name."""
    schema = tflite_schema()
    known = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    found = []
    for op in model.subgraphs[0].operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = known[max(code.builtinCode, code.deprecatedBuiltinCode)]  # the old field holds codes below 127
        found.append(f"CUSTOM:{(code.customCode or b'').decode()}" if name == "CUSTOM" else name)
    return found


def segment(model: Any, first: int, last: int) -> bytes:
    """The file of the ops from `first` to before `last`: what they read of others goes in, what others read comes out.

    The numbering of tensors is the whole graph's. A DEQUANTIZE of constants comes along to those who read its result,
    because that is unpacked when a file is loaded. Signatures are left out. The model is unchanged.
    """
    graph = model.subgraphs[0]
    names = op_names(model)
    unpacking = {
        int(op.outputs[0]): op
        for name, op in zip(names, graph.operators, strict=True)
        if name == "DEQUANTIZE" and _is_constant(model, op.inputs[0])
    }
    kept = list(graph.operators[first:last])
    produced = {int(i) for op in kept for i in op.outputs if i >= 0}
    read = list(dict.fromkeys(int(i) for op in kept for i in op.inputs if i >= 0 and int(i) not in produced))
    kept = [unpacking[i] for i in read if i in unpacking] + kept
    others = (*graph.operators[:first], *graph.operators[last:])
    wanted = {int(i) for op in others for i in op.inputs} | {int(i) for i in graph.outputs}
    inputs, outputs, operators, signatures = graph.inputs, graph.outputs, graph.operators, model.signatureDefs
    try:
        graph.operators, model.signatureDefs = kept, None
        graph.inputs = [i for i in read if i not in unpacking and not _is_constant(model, i)]
        graph.outputs = [i for i in produced if i in wanted] or sorted(produced)[-1:]
        return pack(model)
    finally:
        graph.inputs, graph.outputs, graph.operators, model.signatureDefs = inputs, outputs, operators, signatures


def _is_constant(model: Any, tensor: int) -> bool:
    data = model.buffers[model.subgraphs[0].tensors[tensor].buffer].data
    return data is not None and len(data) > 0
