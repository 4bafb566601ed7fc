"""Hold captionlite's tokenizer to the Java one: `python -m captionlite.benchmarks.ptb_check DATA` (needs `java`).

DATA is any data set that training reads. Every caption goes through `captionlite.training.scoring.tokenize` and through
the PTB tokenizer that pycocoevalcap ships; then each photograph's first caption is scored against its others on both
tokenisations. Prints how many captions agree and what the difference does to the scores.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from captionlite.runtime.errors import CaptionliteError
from captionlite.training.datasets import load_dataset
from captionlite.training.scoring import score_tokenized, tokenize


def ptb_tokenize(captions: Sequence[str]) -> list[list[str]]:
    """Captions through pycocoevalcap's jar as pycocoevalcap calls it, punctuation removed as it does.

    Not by way of its PTBTokenizer class: that writes into site-packages and prints to stderr.
    Raises CaptionliteError when there is no java, or when it fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    java = shutil.which("java")
    if java is None:
        raise CaptionliteError("java is not on the PATH: install a Java runtime (Debian: default-jre-headless)")
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "captions.txt")
        text.write_text("\n".join(caption.replace("\n", " ") for caption in captions), encoding="utf-8")
        command = [java, "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(text)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    lines = done.stdout.split("\n")
    if done.returncode or len(lines) < len(captions):
        raise CaptionliteError(f"the PTB tokenizer failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [[word for word in line.split() if word not in dropped] for line in lines[: len(captions)]]


def cross_check(captions_by_photo: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Compare both tokenizers on the captions of each photograph.

    -> {"captions", "identical", "differing": [[caption, PTB's, ours] ...], "scores_ptb", "scores_ours"}; the scores are
    None unless some photograph has two captions.
    """
    flat = [caption for captions in captions_by_photo for caption in captions]
    ptb, ours = ptb_tokenize(flat), [tokenize(caption) for caption in flat]
    differing = [[c, " ".join(p), " ".join(o)] for c, p, o in zip(flat, ptb, ours, strict=True) if p != o]

    def scores(tokens: list[list[str]]) -> dict[str, float | int] | None:
        rest = iter(tokens)
        grouped = {str(i): [next(rest) for _ in captions] for i, captions in enumerate(captions_by_photo)}
        grouped = {key: group for key, group in grouped.items() if len(group) > 1}
        if not grouped:
            return None
        first = {key: group[0] for key, group in grouped.items()}
        return score_tokenized(first, {key: group[1:] for key, group in grouped.items()}).to_json()

    return {
        "captions": len(flat),
        "identical": len(flat) - len(differing),
        "differing": differing,
        "scores_ptb": scores(ptb),
        "scores_ours": scores(ours),
    }


@click.command(help="Compare captionlite's tokenizer with the PTB tokenizer over all captions of DATA (needs java).")
@click.argument("data")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(data: str, as_json: bool) -> None:
    try:
        dataset = load_dataset(data)
        report = cross_check([e.captions for examples in dataset.splits.values() for e in examples])
    except CaptionliteError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    click.echo(f"{report['identical']} of {report['captions']} captions tokenise identically")
    for caption, ptb, ours in report["differing"]:
        click.echo(f"  {caption}\n    PTB  {ptb}\n    ours {ours}")
    if report["scores_ptb"] is not None:
        for name, ptb_score in report["scores_ptb"].items():
            ours_score = report["scores_ours"][name]
            click.echo(f"{name:8} PTB {ptb_score:.6f}  ours {ours_score:.6f}  difference {ours_score - ptb_score:+.1e}")


if __name__ == "__main__":
    main()
