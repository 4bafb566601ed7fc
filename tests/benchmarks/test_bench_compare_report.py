"""`captionlite bench compare --out`: pictures, and one HTML page that needs nothing else and believes nobody."""

import base64
import hashlib
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path

import pytest
from bench_results import result, write
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.benchmarks import plots
from captionlite.benchmarks.commands import bench_compare
from captionlite.benchmarks.compare import Comparison, read_comparison
from captionlite.benchmarks.compare_page import _fenced, markdown, tables
from captionlite.benchmarks.plots import Picture, Ways, draw, label
from captionlite.benchmarks.report_html import report
from captionlite.runtime.cli import cli

HOSTILE = (
    "<script>alert(1)</script> \"quoted' & $x_{2}$ `tick` | pipe \x1b[31m \u202e [a](javascript:1) ${title} %s 日本"
)
PNGS = ["stages.png", "gpu-edge.png", "quality.png", "distribution.png"]
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page is made of; `unclosed` is empty where every element is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.unclosed: list[str] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.shown = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.unclosed and self.unclosed[-1] == "script":
            self.scripts[-1] += data
        elif "td" in self.unclosed or "th" in self.unclosed:
            self.rows[-1][-1] += data
        if self.unclosed and self.unclosed[-1] not in ("script", "style"):
            self.shown += data


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", "compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    folder = tmp_path_factory.mktemp("results")
    return [
        write(folder / "a.json", result("float32", encode_ms=4.0, step_ms=0.2)),
        write(folder / "b.json", result("int8", 2)),
        write(folder / "c.json", result("float32", None, target="gpu", encode_ms=0.5)),
    ]


@pytest.fixture(scope="module")
def comparison(paths: Sequence[Path]) -> Comparison:
    return read_comparison(paths)


@pytest.fixture(scope="module")
def pictures(comparison: Comparison) -> list[Picture]:
    return draw(comparison)


@pytest.fixture(scope="module")
def page(comparison: Comparison, pictures: list[Picture]) -> str:
    return report(comparison, pictures, "captionlite bench compare a.json b.json c.json")


def size(png: bytes | None) -> tuple[int, int]:
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def test_every_picture_is_drawn_and_has_a_text_of_its_own(pictures: list[Picture]) -> None:
    assert [picture.file for picture in pictures] == PNGS
    for picture in pictures:
        width, height = size(picture.png)
        assert 600 <= width <= 2000
        assert 200 <= height <= 1200
    assert pictures[0].alt.endswith(
        "edge float32 1 thread: 7.50 ms; edge int8 2 threads: 4.50 ms; gpu float32: 3.00 ms"
    )
    assert "edge int8 2 threads: 4.50 ms, 0.480" in pictures[2].alt


def test_a_picture_without_figures_is_left_out_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", result(scores={}))
    quality = draw(read_comparison([path]))[2]
    assert quality.png is None
    assert "`captionlite export --scores`" in quality.skipped
    assert compare(path, "--out", tmp_path / "report").exit_code == 0
    assert "Not drawn: no result" in (tmp_path / "report" / "report.html").read_text()
    assert "Not drawn: no result" in (tmp_path / "report" / "compare.md").read_text()


def test_out_writes_everything_and_removes_a_picture_of_before(tmp_path: Path, paths: Sequence[Path]) -> None:
    done = compare(*paths, "--out", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted([*PNGS, "compare.md", "report.html"])
    assert [line.rpartition("/")[2] for line in done.stderr.splitlines()[1:]] == [*PNGS, "compare.md", "report.html"]
    (tmp_path / "report" / "mine.txt").touch()
    unscored = write(tmp_path / "a.json", result(scores={}))
    assert compare(unscored, "--out", tmp_path / "report").exit_code == 0
    left = {path.name for path in (tmp_path / "report").iterdir()}
    assert left == {*PNGS, "compare.md", "report.html", "mine.txt"} - {"quality.png"}


def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    found = Page(page)
    assert found.unclosed == []
    loading = [(tag, name) for tag, attributes in found.elements for name in attributes if name in ("src", "href")]
    assert loading == [("img", "src")] * 4
    assert not {tag for tag, _ in found.elements} & {"link", "iframe", "object", "embed", "base", "form", "a"}
    for tag, attributes in found.elements:
        if tag == "img":
            kind, _, data = (attributes["src"] or "").partition(";base64,")
            assert kind == "data:image/png"
            assert size(base64.b64decode(data, validate=True))[0] >= 600
            assert attributes["alt"]
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", page))


def test_the_policy_lets_the_sorting_script_run_and_nothing_else(page: str) -> None:
    found = Page(page)
    (script,) = found.scripts
    policy = next(a["content"] or "" for t, a in found.elements if t == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_page_has_the_figures_that_the_tables_have(page: str, comparison: Comparison) -> None:
    rows = Page(page).rows
    for table in tables(comparison):
        for row in table.rows:
            assert [cell.shown for cell in row] in rows
    shown = Page(page).shown
    for told in ("64 captions to warm up", "5 of tests/photos", "ai-edge-litert 2.3.0", "jax 0.7.1, keras 3.15.1"):
        assert told in shown
    assert shown.count("captionlite bench run --photos tests/photos") == 3
    assert "captionlite bench compare a.json b.json c.json" in shown


def test_columns_sort_by_numbers_not_by_what_is_shown(page: str) -> None:
    buttons = [attributes for tag, attributes in Page(page).elements if tag == "button"]
    assert [button["data-place"] for button in buttons[:13]] == [str(place) for place in (0, 1, 2, 3, 4, 8, 9, 10)] + [
        str(place) for place in (5, 6, 7, 11, 12)
    ]
    assert '<td class="n first" data-value="7.5">7.50</td>' in page
    assert '<td class="n">–</td>' in page  # no cold start of a GPU's: without a value it comes last


def test_light_and_dark(page: str) -> None:
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    document = result("int8", family=HOSTILE[:20], name=HOSTILE, notes=[HOSTILE], command=["captionlite", HOSTILE])
    document["model"] |= {"family": HOSTILE, "recipe": HOSTILE, "id": HOSTILE}
    document["model"]["scores"] = {f"{HOSTILE.replace(',', '')}, {HOSTILE}, {HOSTILE}": {"cider": 0.5}}
    document["protocol"] |= {"decoding": HOSTILE, "name": HOSTILE}
    document["photographs"] = {"count": 1, "sha256": HOSTILE, "source": HOSTILE}
    document["machine"] |= {"cpu": HOSTILE, "platform": HOSTILE, "interpreter": {"name": HOSTILE, "version": HOSTILE}}
    document["energy"] = {"unavailable": HOSTILE}
    other = {
        **document,
        "kind": HOSTILE,
        "found": [{HOSTILE: HOSTILE, "b": 1}],
        HOSTILE: {HOSTILE: {"c": 2}},
        "d": HOSTILE,
    }
    folder = tmp_path_factory.mktemp("hostile")
    paths = [write(folder / "a `$` <b>.json", document), write(folder / "other.json", other)]
    changed = {**document, "photographs": {"count": 2, "sha256": "other", "source": HOSTILE}}
    return read_comparison([*paths, write(folder / "c.json", changed)], force=True)


def test_names_from_results_do_nothing_on_the_page(hostile: Comparison) -> None:
    text = report(hostile, draw(hostile), "captionlite")
    found = Page(text)
    assert found.unclosed == []
    assert len(found.scripts) == 1
    assert not [tag for tag, _ in found.elements if tag in ("a", "b", "alert")]
    assert "<script>alert(1)</script>" in found.shown  # as text
    assert "${title}" in found.shown
    assert "\x1b" not in text
    assert "\u202e" not in text
    (box,) = [attributes for tag, attributes in found.elements if attributes.get("role") == "alert"]
    assert box["class"] == "warning"
    assert text.index('role="alert"') < text.index("<main>")


def test_names_from_results_do_nothing_in_markdown(hostile: Comparison) -> None:
    page = markdown(hostile, [], "captionlite")
    assert not re.search(r"(?<!\\)<", re.sub(r"(?s)(`{3,})bash\n.*?\n\1\n", "", page))
    for is_table, lines in groupby(page.splitlines(), lambda line: line.startswith("|")):
        if is_table:  # the pipes in names divide no cells
            assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert _fenced(["a ``` b"])[0] == "````bash"
    (code,) = set(re.findall(r"^(`+bash)\ncaptionlite '", page, re.MULTILINE))
    assert code == "```bash"  # as the command has two backticks only


def test_names_from_results_do_nothing_on_the_terminal(hostile: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    bench_compare._print(hostile)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[31m" in shown


def test_labels_are_no_formulas_and_of_characters_that_the_font_has() -> None:
    assert label("a $x$ b_c") == r"a \$x\$ b_c"
    assert label("日本 é") == "?? é"
    assert label("_hidden") == "hidden"
    assert label("___") == "?"
    assert len(label("x" * 100)) == 44


def test_ways_look_different_and_alike_in_all_pictures(comparison: Comparison) -> None:
    ways = Ways(comparison.entries)
    assert [ways.name(way) for way in ways.all] == [
        "edge float32 1 thread",
        "edge int8 2 threads",
        "gpu float32 NVIDIA H200",
    ]
    assert len({ways.look(way).colour for way in ways.all}) == 3


def test_very_many_and_very_slow_results_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MOST", 24)
    encode_ms = [0.001, 1000.0, *map(float, range(1, 30))]
    paths = [
        write(tmp_path / f"{number:03}.json", result(f"r{number}", encode_ms=time_ms, scores={}))
        for number, time_ms in enumerate(encode_ms)
    ]
    stages, bars, _, distribution = draw(read_comparison(paths))
    assert "r23" in stages.alt
    assert "r24" not in stages.alt
    assert size(stages.png)[1] < 1500
    assert size(bars.png)[0] < 2000
    assert size(distribution.png)[0] > 600


def test_times_of_nothing_are_drawn(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("p50", "p90", "p99", "mean"), 0)
    stages = ("image", "encode", "step", "decode", "post", "whole")
    document = result(summary=dict.fromkeys(stages, nothing), samples={"whole_ms": [0.0, 0.0, 0.0]})
    assert all(picture.png for picture in draw(read_comparison([write(tmp_path / "a.json", document)])))


def test_tables_alone_import_no_matplotlib(paths: Sequence[Path]) -> None:
    code = f"""
import sys
from captionlite.runtime.cli import cli
cli.main(["bench", "compare", {str(paths[0])!r}, "--json"], standalone_mode=False)
assert not {{"matplotlib", "keras", "tensorflow"}} & set(sys.modules), "too much"
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
