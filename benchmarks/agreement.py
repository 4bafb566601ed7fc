"""How many captions of a bundle are word for word those of the Keras model it was made of.

    python -m captionlite.benchmarks.agreement --run RUN --bundle FLOAT32 --bundle INT8 --data flickr8k:DIR --split test

Keras captions each photograph from its pixels, greedily, with its own step; every bundle does so through the runtime.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from captionlite.runtime.image import ImageSource
from captionlite.training.progress import progress


def keras_captions(run: Any, photographs: Sequence[ImageSource]) -> Iterator[list[int]]:
    """Greedy token ids of each photograph, without start and end, one photograph at a time."""
    import keras
    import numpy as np

    from captionlite.runtime.image import load_image
    from captionlite.training.compiled import compiled

    encode = compiled(lambda pixels: run.encoder(pixels, training=False), run.encoder.variables)
    for path in photographs:
        pixels = load_image(path, run.image_spec)[None].astype(np.float32)
        features = keras.ops.convert_to_numpy(encode(keras.ops.convert_to_tensor(pixels)))
        yield run.generator.generate(features)[0]


@click.command()
@click.option("--run", "run_directory", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--bundle", "bundles", multiple=True, required=True, help="Repeatable.")
@click.option("--data", required=True)
@click.option("--split", default="test", show_default=True)
@click.option("--limit", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True)
def command(
    run_directory: Path, bundles: tuple[str, ...], data: str, split: str, limit: int | None, as_json: bool
) -> None:
    """Count the captions that a bundle and its Keras model agree on, and show the first that differ."""
    from captionlite.runtime.captioner import Captioner
    from captionlite.training.datasets import load_dataset
    from captionlite.training.run import load_run

    run = load_run(run_directory)
    photographs = [example.image for example in load_dataset(data).split(split)[:limit]]
    captioners = {name: Captioner.from_bundle(name) for name in bundles}
    equal = dict.fromkeys(bundles, 0)
    different: dict[str, list[dict[str, str]]] = {name: [] for name in bundles}
    with progress(len(photographs), "captioning") as advance:
        for path, expected in zip(photographs, keras_captions(run, photographs), strict=True):
            for name, captioner in captioners.items():
                caption = captioner.caption(path)
                found = [token for token in caption.tokens if token != captioner.bundle.manifest.decoding.end_id]
                equal[name] += found == expected
                if found != expected:
                    texts = {"keras": run.vocabulary.decode(expected), "bundle": caption.text}
                    different[name].append({"image": path.name, **texts})
            advance(1)
    if as_json:
        click.echo(json.dumps({"photographs": len(photographs), "equal": equal, "different": different}))
        return
    for name in bundles:
        click.echo(f"{name}: {equal[name]} of {len(photographs)} captions equal Keras's")
        for row in different[name][:3]:
            click.echo(f"  {row['image']}: {row['keras']} | {row['bundle']}")


if __name__ == "__main__":
    command()
