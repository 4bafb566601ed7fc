"""The page of an evaluation: read back with an HTML parser, as a browser would, and never trusted with markup."""

import base64
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import toy_bundle as toy
from click.testing import CliRunner
from PIL import Image

from captionlite.benchmarks.evaluation import Evaluation, evaluate
from captionlite.benchmarks.gallery import drawn_at_random, gallery, lowest
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import Alternative, Caption, DecodingOptions
from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import ImageSource
from captionlite.training import files
from captionlite.training.datasets import Example

ABOUT = {"bundle": "toy <1>", "recipe": "int8", "data": "drawn", "split": "dev", "decoding": "beam 2"}
EVIL = "<script>alert(\"1\")</script> & 'dog'"


class Page(HTMLParser):
    """What stands on a page: its tags, the text in each kind of element, and its pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.pictures: list[dict[str, str]] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(found)
        elif tag != "meta":
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")
        self.links += [found[name] for name in ("src", "href") if name in found]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self._open[-1:]:
            self.texts[tag][-1] += data


class Scripted:
    """Says what it is told to by the photograph's name; "broken" cannot be read."""

    def __init__(self, said: dict[str, str], confidence: float | None = None) -> None:
        self.said, self.confidence = said, confidence

    def caption_many(
        self, images: Iterable[ImageSource], options: DecodingOptions | None = None
    ) -> Iterator[Caption | ImageError]:
        for image in images:
            name = Path(str(image)).name
            yield self.caption(name, options) if name in self.said else ImageError(f"{name}: <b>empty</b>")

    def caption(self, name: str, options: DecodingOptions | None) -> Caption:
        other = Alternative("a <i>cat</i>", (5,), (-0.5,), -0.5, -0.5, "end")
        others = (other,) if options is not None and options.n_best > 1 else ()
        text = self.said[name]
        return Caption(
            text, (4,), (-1.25,), -1.25, {}, "end", None, alternatives=others, confidence=self.confidence
        )  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs of other proportions, one of which is to be turned, and one that is none."""
    random = np.random.default_rng(0)
    for name, (height, width) in {"good.jpg": (300, 600), "bad.png": (50, 40), "turned.jpg": (100, 400)}.items():
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        if name == "turned.jpg":
            exif[0x0112] = 6
        picture.save(tmp_path / name, exif=exif)
    return tmp_path


@pytest.fixture
def evaluation(photos: Path) -> Callable[..., Evaluation]:
    def build(n_best: int = 1, confidence: float | None = None) -> Evaluation:
        said = {"good.jpg": "a red dog runs", "bad.png": EVIL, "turned.jpg": "a red dog on the grass"}
        references = {
            "good.jpg": ("a red dog runs", EVIL),
            "bad.png": ("two men sit",),
            "turned.jpg": ("the red dog runs over grass",),
            "broken.jpg": ("nobody knows",),
        }
        examples = [Example(photos / name, captions, name) for name, captions in references.items()]
        options = DecodingOptions(beams=n_best, n_best=n_best)
        return evaluate(Scripted(said, confidence), examples, options=options)

    return build


def test_worst_first_after_what_could_not_be_read(evaluation: Callable[..., Evaluation]) -> None:
    found = evaluation(confidence=0.4321)
    page = Page(gallery(found, ABOUT, 10))
    assert page.texts["h1"] == ["toy <1> (int8, beam 2) on drawn dev"]
    assert page.texts["h3"] == ["could not be read", EVIL, "a red dog on the grass", "a red dog runs"]
    cider = {photo.example.id: photo.scores.cider for photo in found.photos if photo.scores}
    figures = [text for text in page.texts["p"] if "confidence" in text]
    for text, name in zip(figures, ("bad.png", "turned.jpg", "good.jpg"), strict=True):
        assert text.startswith(f"CIDEr {cider[name]:.2f} · ROUGE-L ")
        assert text.endswith("confidence 0.43 · mean log-probability -1.25")
    assert cider["bad.png"] < cider["turned.jpg"] < cider["good.jpg"]
    assert page.texts["li"] == [
        "nobody knows", "two men sit", "the red dog runs over grass", "a red dog runs", EVIL,
    ]  # fmt: skip
    assert "4 of 4 photographs, those with the lowest CIDEr first. 1 could not be read." in page.texts["p"]
    assert "broken.jpg: <b>empty</b>" in page.texts["p"]


def test_limit_keeps_the_worst_and_says_so(evaluation: Callable[..., Evaluation]) -> None:
    page = Page(gallery(evaluation(), ABOUT, 2))
    assert page.texts["h3"] == ["could not be read", EVIL]
    assert "2 of 4 photographs, those with the lowest CIDEr first. 1 could not be read." in page.texts["p"]


def test_random_ones_follow_the_worst(evaluation: Callable[..., Evaluation]) -> None:
    page = Page(gallery(evaluation(), ABOUT, 1, random=2, seed=4))
    assert page.texts["h2"] == ["The lowest CIDEr", "2 drawn at random from all (seed 4)"]
    assert page.texts["h3"][0] == "could not be read"
    assert len(page.texts["h3"]) == 3
    assert Page(gallery(evaluation(), ABOUT, 1)).texts["h2"] == ["The lowest CIDEr"]


def test_the_draw_is_seeded_fair_and_blind_to_the_scores() -> None:
    low_first = {f"{i}.jpg": float(i) for i in range(10)}
    high_first = {f"{i}.jpg": float(-i) for i in range(10)}
    draws = [drawn_at_random(low_first, 3, seed) for seed in range(600)]
    assert draws == [drawn_at_random(high_first, 3, seed) for seed in range(600)]
    assert all(len(set(draw)) == 3 and draw == sorted(draw) for draw in draws)
    counts = [sum(name in draw for draw in draws) for name in low_first]
    assert all(130 < count < 230 for count in counts), counts  # 180 of 600, give or take 11
    assert drawn_at_random(low_first, 99, 0) == list(low_first)
    assert lowest(high_first, 2) == ["9.jpg", "8.jpg"]


def test_pictures_are_small_upright_and_in_their_proportions(evaluation: Callable[..., Evaluation]) -> None:
    page = Page(gallery(evaluation(), ABOUT, 10))
    sizes = []
    for picture in page.pictures:
        head, _, data = picture["src"].partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(BytesIO(base64.b64decode(data, validate=True))) as image:
            sizes.append(image.size)
            assert image.size == (int(picture["width"]), int(picture["height"]))
            assert 0x0112 not in image.getexif()
    assert sizes == [(40, 50), (50, 200), (200, 100)]  # never enlarged; turned by its EXIF; the longer side 200
    assert [picture["alt"] for picture in page.pictures] == [EVIL, "a red dog on the grass", "a red dog runs"]


def test_nothing_is_fetched_and_nothing_runs(evaluation: Callable[..., Evaluation]) -> None:
    html = gallery(evaluation(n_best=2), ABOUT, 10)
    page = Page(html)
    assert {"script", "i", "b", "link", "iframe"} & set(page.tags) == set()
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "default-src 'none'" in html
    assert "http:" not in html.lower()
    assert "url(" not in html


def test_other_hypotheses_are_listed_with_their_scores(evaluation: Callable[..., Evaluation]) -> None:
    found = evaluation(n_best=2)
    page = Page(gallery(found, ABOUT, 10))
    listed = [text for text in page.texts["li"] if text.startswith("a <i>cat</i>")]
    ranked = sorted((photo for photo in found.photos if photo.scores), key=lambda photo: photo.scores.cider)
    assert listed == [f"a <i>cat</i> (CIDEr {photo.alternatives_cider[0]:.2f}, -0.50)" for photo in ranked]
    assert found.n_best is not None
    assert any(f"oracle CIDEr (n-best 2) {found.n_best.oracle_cider:.2f}" in text for text in page.texts["p"])


def test_a_photograph_gone_since_is_shown_without_its_picture(
    evaluation: Callable[..., Evaluation], photos: Path
) -> None:
    found = evaluation()
    (photos / "good.jpg").unlink()
    page = Page(gallery(found, ABOUT, 10))
    assert len(page.pictures) == 2
    assert "a red dog runs" in page.texts["h3"]
    assert any("good.jpg: cannot be read" in text for text in page.texts["p"])


def test_the_command_writes_it_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write(tmp_path / "toy")
    rows = []
    for number, pixels in enumerate(toy.photographs(3)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f'{{"image": "{number}.png", "captions": ["a dog {number}"], "split": "test"}}\n')
    (tmp_path / "data.jsonl").write_text("".join(rows))
    page = tmp_path / "page.html"
    arguments = ["evaluate", "--bundle", str(tmp_path / "toy"), "--data", str(tmp_path / "data.jsonl"), "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--gallery", str(page), "--gallery-limit", "2"])
    assert result.exit_code == 0, result.stderr
    written = page.read_text(encoding="utf-8")
    assert len(Page(written).pictures) == 2
    assert "2 of 3 photographs" in written
    for wrong in (["--gallery-random", "1"], ["--gallery", str(page), "--gallery-seed", "1"]):
        assert CliRunner().invoke(cli, [*arguments, *wrong]).exit_code == 2
    result = CliRunner().invoke(
        cli, [*arguments, "--gallery", str(page), "--gallery-random", "2", "--gallery-seed", "1"]
    )
    assert result.exit_code == 0, result.stderr
    written = page.read_text(encoding="utf-8")
    assert len(Page(written).pictures) == 5
    assert "2 drawn at random from all (seed 1)" in written

    def interrupted(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.write_bytes_atomically.__globals__["os"], "fsync", interrupted)
    result = CliRunner().invoke(cli, [*arguments, "--gallery", str(page)])
    assert isinstance(result.exception, OSError)
    assert page.read_text(encoding="utf-8") == written
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
