"""What is wrong with captions, as a person who looked at the photographs says: classes of error, counted.

    captionlite evaluate --data KIND:PATH --beams 3 --out captions.jsonl --gallery page.html \
        --gallery-limit 100 --gallery-random 100
    python -m captionlite.benchmarks.errors choose captions.jsonl --worst 100 --random 100 --out verdicts.jsonl
    ... write each line's classes, the gravest first, looking at page.html ...
    python -m captionlite.benchmarks.errors count verdicts.jsonl --picture errors.png

A verdict is a line {"id", "caption", "parts", "classes"}: `parts` says why the photograph was looked at ("worst",
"random", or both) and `classes` what is wrong. The file has neither photographs nor what people wrote of them, so it
may be published where those may not. Only the random part says how often an error occurs: its shares are those of the
whole split, to within Wilson's interval (1927).

How to judge: against the photograph, not against what people wrote. A vague caption that is true is right, and what it
leaves out is no error unless it is the main subject. An animal called another animal is `who`, a person or thing called
something else altogether is `subject`; what is wrong only because of that is not counted again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from captionlite.benchmarks.gallery import drawn_at_random, lowest
from captionlite.benchmarks.plots import BLUE, ORANGE, label, new_figure, tidy, to_png
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.files import write_bytes_atomically

RIGHT = "right"
CLASSES = {
    RIGHT: "nothing that the photograph contradicts",
    "nonsense": "broken text: no sentence, a phrase twice, a clause that means nothing",
    "subject": "the main subject is another thing, or is not mentioned",
    "who": "the subject's sex, age or species is wrong",
    "count": "a wrong number of people, animals or things",
    "action": "what they do is wrong",
    "object": "another thing is wrong or not there",
    "place": "where they are is wrong",
    "colour": "a wrong colour, or wrong clothes",
}
PARTS = ("random", "worst")
Z = 1.959964  # of 95 %, two-sided


class VerdictError(CaptionliteError):
    """A file of captions or verdicts that is missing, damaged or unfinished."""


@dataclass(frozen=True)
class Verdict:
    """One photograph's caption, why it was looked at, and what is wrong with it, the gravest first."""

    id: str
    caption: str
    parts: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """How many of ``n`` captions; with the share and, for a random part, where 95 % of such draws have the truth."""

    count: int
    n: int

    @property
    def share(self) -> float:
        return self.count / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval: unlike the normal one, it neither leaves [0, 1] nor shrinks to nothing at 0."""
        p, n = self.share, self.n
        centre = p + Z * Z / (2 * n)
        half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, (centre - half) / (1 + Z * Z / n)), min(1.0, (centre + half) / (1 + Z * Z / n))


def choose(captions: Path, worst: int, random: int, seed: int) -> list[Verdict]:
    """Verdicts without classes yet, of the captions that `captionlite evaluate --out` wrote: the same photographs as
    on its page, the worst first; one that is both worst and drawn stands there once.
    """
    rows = {str(row["id"]): row for _, row in _lines(captions, ("id",)) if "error" not in row}
    for key, row in rows.items():
        if not isinstance(row.get("cider"), int | float) or not isinstance(row.get("caption"), str):
            raise VerdictError(
                f"{captions}: {key} has no caption and cider; expected `captionlite evaluate --out`'s file"
            )
    cider = {key: float(row["cider"]) for key, row in rows.items()}
    low, drawn = lowest(cider, worst), drawn_at_random(cider, random, seed)
    chosen = {
        key: tuple(part for part, ids in (("random", drawn), ("worst", low)) if key in ids) for key in low + drawn
    }
    return [Verdict(key, rows[key]["caption"], parts, ()) for key, parts in chosen.items()]


def read_verdicts(path: Path) -> list[Verdict]:
    """The finished file. Raises VerdictError naming the line that is not."""
    verdicts: dict[str, Verdict] = {}
    for where, row in _lines(path, ("id", "caption", "parts", "classes")):
        parts, classes = tuple(row["parts"]), tuple(row["classes"])
        if not parts or set(parts) - set(PARTS):
            raise VerdictError(f"{where}.parts: found {list(parts)}, expected some of {', '.join(PARTS)}")
        if not classes:
            raise VerdictError(f"{where}.classes: {row['id']} has none yet; expected some of {', '.join(CLASSES)}")
        unknown = [name for name in classes if name not in CLASSES]
        if unknown:
            raise VerdictError(f"{where}.classes: found {unknown[0]!r}, expected some of {', '.join(CLASSES)}")
        if len(set(classes)) != len(classes) or (RIGHT in classes and len(classes) > 1):
            raise VerdictError(f"{where}.classes: found {list(classes)}, expected each once, and {RIGHT!r} by itself")
        if row["id"] in verdicts:
            raise VerdictError(f"{where}.id: {row['id']} has a verdict already, further up")
        verdicts[row["id"]] = Verdict(row["id"], row["caption"], parts, classes)
    return list(verdicts.values())


def to_jsonl(verdicts: Sequence[Verdict]) -> str:
    return "".join(json.dumps(vars(verdict), ensure_ascii=False) + "\n" for verdict in verdicts)


def counts(verdicts: Sequence[Verdict], part: str, *, gravest: bool = False) -> dict[str, Count]:
    """By class, in the order of ``CLASSES``: the part's captions that have it, or have it first, as the gravest."""
    chosen = [verdict.classes[:1] if gravest else verdict.classes for verdict in verdicts if part in verdict.parts]
    return {name: Count(sum(name in classes for classes in chosen), len(chosen)) for name in CLASSES} if chosen else {}


def report(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What `count --json` prints: by part, n and by class its counts, shares and (random part) interval."""
    found: dict[str, Any] = {}
    for part in PARTS:
        anywhere, first = counts(verdicts, part), counts(verdicts, part, gravest=True)
        if anywhere:
            classes: dict[str, dict[str, Any]] = {}
            for name, count in anywhere.items():
                classes[name] = {"count": count.count, "gravest": first[name].count, "share": round(count.share, 4)}
                if part == "random":
                    classes[name]["interval"] = [round(value, 4) for value in count.interval]
            found[part] = {"n": next(iter(anywhere.values())).n, "classes": classes}
    return found


def table(found: Mapping[str, Any]) -> str:
    """The report as a Markdown table, a row a class."""
    heads, rows = ["class"], [[name] for name in CLASSES]
    for part, figures in found.items():
        heads += [f"{part}, of {figures['n']}", "gravest"] + (["95 % of all"] if part == "random" else [])
        for row in rows:
            each = figures["classes"][row[0]]
            row += [str(each["count"]), str(each["gravest"])]
            if part == "random":
                low, high = each["interval"]
                row.append(f"{100 * low:.0f}-{100 * high:.0f} %")
    for row in rows:
        row.append(CLASSES[row[0]])
    lines = [[*heads, "what it means"], ["---"] * (len(heads) + 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(found: Mapping[str, Any], title: str) -> bytes:
    """A PNG: a bar a class and part, of the captions that have it; the random part's with its interval."""
    figure = new_figure(8, 4.6)
    axes = figure.subplots()
    height = 0.8 / len(found)
    for number, (part, figures) in enumerate(found.items()):
        places = [place + (number - (len(found) - 1) / 2) * height for place in range(len(CLASSES))]
        shares = [100 * figures["classes"][name]["share"] for name in CLASSES]
        look: dict[str, Any] = {
            "color": BLUE if part == "random" else ORANGE,
            "hatch": "" if part == "random" else "///",
        }
        axes.barh(places, shares, height, label=f"{part} {figures['n']}", edgecolor="white", **look)
        if part == "random":
            ends = [figures["classes"][name]["interval"] for name in CLASSES]
            # Rounded, an end may lie on the wrong side of its share by a hair, which matplotlib refuses.
            below = [max(0.0, share - 100 * low) for share, (low, _) in zip(shares, ends, strict=True)]
            above = [max(0.0, 100 * high - share) for share, (_, high) in zip(shares, ends, strict=True)]
            axes.errorbar(shares, places, xerr=(below, above), fmt="none", ecolor="black", capsize=2, linewidth=1)
    axes.set_yticks(range(len(CLASSES)), list(CLASSES))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of captions; one may have several")
    if title:
        axes.set_title(label(title, 90))
    axes.legend(frameon=False)
    tidy(axes, "x")
    return to_png(figure)


def _lines(path: Path, fields: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VerdictError(f"{path}: cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise VerdictError(f"{path}:{number}: no JSON ({error})") from None
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise VerdictError(f"{path}:{number}: has no {missing[0]!r}, expected an object with {', '.join(fields)}")
        for name in ("parts", "classes"):
            if name in fields and not isinstance(row[name], list):
                raise VerdictError(f"{path}:{number}.{name}: found {row[name]!r}, expected a list")
        rows.append((f"{path}:{number}", row))
    if not rows:
        raise VerdictError(f"{path}: empty, expected a JSON object a line")
    return rows


_IN = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Classes of error in captions, as a person judges them."""


@main.command("choose")
@click.argument("captions", type=_IN)
@click.option("--worst", type=click.IntRange(min=0), default=100, show_default=True, help="Of the least CIDEr.")
@click.option("--random", type=click.IntRange(min=0), default=100, show_default=True, help="Drawn from all.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which random ones.")
@click.option("--out", required=True, type=_OUT)
def choose_command(captions: Path, worst: int, random: int, seed: int, out: Path) -> None:
    """Write a line a photograph of CAPTIONS (`captionlite evaluate --out`) that waits for its classes."""
    if out.exists():
        raise click.ClickException(f"{out}: there already, perhaps with somebody's verdicts; move it away first")
    try:
        chosen = choose(captions, worst, random, seed)
    except VerdictError as error:
        raise click.ClickException(str(error)) from None
    write_bytes_atomically(out, to_jsonl(chosen).encode())
    click.echo(f"{out}: {len(chosen)} photographs to look at", err=True)


@main.command("count")
@click.argument("verdicts", type=_IN)
@click.option("--picture", type=_OUT, help="Draw the shares into this PNG.")
@click.option("--title", default="", help="What stands above the picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def count_command(verdicts: Path, picture: Path | None, title: str, as_json: bool) -> None:
    """Count the classes of VERDICTS, for the random and the worst photographs."""
    try:
        found = report(read_verdicts(verdicts))
    except VerdictError as error:
        raise click.ClickException(str(error)) from None
    if picture is not None:
        write_bytes_atomically(picture, draw(found, title))
    click.echo(json.dumps(found) if as_json else table(found), nl=as_json)


if __name__ == "__main__":
    main()
