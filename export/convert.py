"""tf.Module -> TFLite bytes by the TensorFlow converter, with the written file's ops checked."""

from __future__ import annotations

import tempfile
from typing import Any

import tensorflow as tf

from captionlite.export.errors import ExportError
from captionlite.export.tflite_file import SIGNATURE, check_ops


def convert(module: Any) -> bytes:
    """The float32 TFLite file of ``module.serve``, with signature names kept.

    Raises ExportError when the converter refuses, or when an op is not a TFLite builtin.
    """
    with tempfile.TemporaryDirectory(prefix="captionlite-export-") as directory:
        tf.saved_model.save(module, directory, signatures={SIGNATURE: module.serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(directory, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            content = bytes(converter.convert())
        except Exception as error:
            raise ExportError(f"the TFLite converter refused the graph: {str(error).splitlines()[0]}") from error
    check_ops(content)
    return content
