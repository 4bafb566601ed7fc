"""A page to look through an evaluation: photographs with caption, references and scores, the worst first.

Beside the worst, which say what can go wrong, it may show some drawn at random, which say how often it does.

One HTML file that needs nothing else: the photographs are small JPEGs inside it, there is no script, and its content
security policy lets a browser fetch nothing. Whatever comes from data or model is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from string import Template

import numpy as np

from captionlite.benchmarks.evaluation import EvaluatedPhoto, Evaluation
from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import ImageSource, open_upright

PICTURE_PX = 200
JPEG_QUALITY = 75

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8884; --quiet: #666; --card: #8881; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aaa; } }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
.note, .scores, ul, summary { color: var(--quiet); }
section { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; overflow-wrap: anywhere;
  padding: .75rem; }
img { border-radius: .25rem; display: block; height: auto; margin: 0 auto; max-width: 100%; }
h3 { font-size: 1rem; margin: .6rem 0 .2rem; }
.scores, .id { font-size: .8rem; font-variant-numeric: tabular-nums; margin: 0 0 .4rem; }
.id { color: var(--quiet); margin: 0; }
ul { font-size: .85rem; margin: .2rem 0; padding-left: 1.1rem; }
summary { cursor: pointer; font-size: .85rem; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="scores">$scores</p>
<p class="note">$note</p>
</header>
<main>
$parts
</main>
</body>
</html>
""")


def gallery(evaluation: Evaluation, about: Mapping[str, str], worst: int, random: int = 0, seed: int = 0) -> str:
    """The page, as HTML: the `worst` photographs of least CIDEr, the worst first, after those that could not be read,
    then `random` ones as `drawn_at_random` draws them.

    `about` has bundle, recipe, data, split and decoding. Photographs are read once more, and one that cannot be read
    this time is shown without its picture.
    """
    by_id = {photo.example.id: photo for photo in evaluation.photos}
    cider = {key: photo.scores.cider for key, photo in by_id.items() if photo.scores is not None}
    low = [*evaluation.failed, *(by_id[key] for key in lowest(cider, len(cider)))][:worst]
    note = f"{len(low):,} of {len(evaluation.photos):,} photographs, those with the lowest CIDEr first."
    if evaluation.failed:
        note += f" {len(evaluation.failed):,} could not be read."
    parts = _part("The lowest CIDEr", low)
    if random:
        drawn = [by_id[key] for key in drawn_at_random(cider, random, seed)]
        parts += _part(f"{len(drawn):,} drawn at random from all (seed {seed})", drawn)
    title = f"{about['bundle']} ({about['recipe']}, {about['decoding']}) on {about['data']} {about['split']}"
    scores = evaluation.scores
    summary = {"CIDEr": scores.cider, "BLEU-4": scores.bleu_4, "ROUGE-L": scores.rouge_l}
    if evaluation.n_best is not None:
        summary[f"oracle CIDEr (n-best {evaluation.n_best.n})"] = evaluation.n_best.oracle_cider
    return _PAGE.substitute(
        title=escape(title), scores=escape(_figures(summary)), note=escape(note), parts=parts.rstrip("\n")
    )


def lowest(cider: Mapping[str, float], count: int) -> list[str]:
    """The ids of the `count` photographs with the least CIDEr, the least first; of equals the first in `cider`."""
    return sorted(cider, key=lambda key: cider[key])[:count]


def drawn_at_random(cider: Mapping[str, float], count: int, seed: int) -> list[str]:
    """The ids of `count` photographs (or all), each as likely as the others, in the order of `cider`.

    The draw depends on the ids' order and `seed` alone, so that other captions of the same split get the same ones.
    """
    ids = list(cider)
    places = np.random.default_rng(seed).choice(len(ids), min(count, len(ids)), replace=False)
    return [ids[place] for place in sorted(places)]


def _part(heading: str, photos: Sequence[EvaluatedPhoto]) -> str:
    cards = "\n".join("".join(_card(photo)) for photo in photos)
    return f"<h2>{escape(heading)}</h2>\n<section>\n{cards}\n</section>\n"


def _card(photo: EvaluatedPhoto) -> Iterator[str]:
    caption = photo.caption
    yield "<article>\n"
    if caption is None:
        yield f"<h3>could not be read</h3>\n<p>{escape(photo.error or '')}</p>\n"
    else:
        yield _picture(photo.example.image, caption.text)
        yield f"<h3>{escape(caption.text) or 'nothing said'}</h3>\n"
        figures = {} if photo.scores is None else {"CIDEr": photo.scores.cider, "ROUGE-L": photo.scores.rouge_l}
        if caption.confidence is not None:
            figures["confidence"] = caption.confidence
        figures["mean log-probability"] = caption.logprob
        yield f'<p class="scores">{_figures(figures)}</p>\n'
    yield _list(photo.example.captions)
    if caption is not None and photo.alternatives_cider:
        others = zip(caption.alternatives, photo.alternatives_cider, strict=True)
        yield "<details><summary>other hypotheses</summary>\n"
        yield _list([f"{other.text} (CIDEr {cider:.2f}, {other.logprob:.2f})" for other, cider in others])
        yield "</details>\n"
    yield f'<p class="id">{escape(photo.example.id)}</p>\n</article>'


def _picture(source: ImageSource, text: str) -> str:
    try:
        small = open_upright(source, PICTURE_PX)
    except ImageError as error:
        return f"<p>{escape(str(error))}</p>\n"
    jpeg = BytesIO()
    small.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(jpeg.getvalue()).decode("ascii")
    width, height = small.size
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(text)}" width="{width}" height="{height}" '
        f'loading="lazy" decoding="async">\n'
    )


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>\n" if texts else ""


def _figures(values: Mapping[str, float]) -> str:
    return " · ".join(f"{name} {value:.2f}" for name, value in values.items())
