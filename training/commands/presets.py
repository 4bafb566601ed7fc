"""captionlite presets: what can be trained, how large it is, what it reached."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from captionlite.training.preset_facts import PresetFacts


@click.command()
@click.argument("names", nargs=-1, metavar="[PRESET]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(names: tuple[str, ...], as_json: bool) -> None:
    """List every PRESET, or those named: encoder, features, family, parameters by part, published figures and ours.

    The models are built, with random weights, and their parameters counted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from captionlite.training.config import load_config, preset_names
    from captionlite.training.preset_facts import preset_facts

    facts = [preset_facts(load_config(name)) for name in names or preset_names()]
    if as_json:
        click.echo(json.dumps({"presets": [fact.to_json() for fact in facts]}))
        return
    click.echo("\n\n".join(_text(fact) for fact in facts))


def _text(facts: PresetFacts) -> str:
    height, width = facts.image_size
    frozen = f"frozen, its last {facts.trained_blocks} blocks fine-tuned" if facts.trained_blocks else "frozen"
    seen = "" if facts.seen_shape == facts.feature_shape else f", seen as {_by(facts.seen_shape)}"
    decoder = facts.decoder
    lines = [
        facts.name,
        f"  {facts.description}",
        f"  encoder     {facts.encoder} at {height}x{width}, {facts.encoder_parameters:,} parameters, {frozen}",
        f"  features    {_by(facts.feature_shape)}{seen}",
        f"  decoder     {facts.family}, {decoder.total:,} parameters, {decoder.trainable:,} trained",
        f"  vocabulary  {facts.vocabulary_size:,} words ({facts.vocabulary_size_is})",
        *(f"    {count:>12,}  {part}" for part, count in decoder.parts.items()),
    ]
    for title, figures in (("published", facts.published), ("ours", facts.ours)):
        lines += [f"  {title:<11} {key}: {_plain(value)}" for key, value in figures.items()]
    return "\n".join(lines)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
