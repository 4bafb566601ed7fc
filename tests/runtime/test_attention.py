"""What a captioner looked at: the numbers, the files, the command, and what is refused."""

import errno
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.runtime import Bundle, Captioner
from captionlite.runtime import attention_pictures as pictures
from captionlite.runtime.attention import check_attention_file, write_attention
from captionlite.runtime.attention_words import SeenCaption, attention_grid
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import Caption
from captionlite.runtime.errors import CaptionliteError, InterpreterError, OptionsError, OutputError
from captionlite.runtime.manifest import GraphSpec, Manifest
from captionlite.runtime.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def captioner(toy_directory: Path) -> Captioner:
    return Captioner.from_bundle(toy_directory)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(toy_bundle.photographs(1)[0]).save(path)
    return path


# The numbers.


def test_each_word_has_the_attention_of_its_step(captioner: Captioner) -> None:
    ended = 0
    for pixels in toy_bundle.photographs(6):
        expected = toy_bundle.decode(pixels)
        caption = captioner.caption(pixels)
        found = SeenCaption.of(caption, captioner.bundle.vocabulary, (2, 3))
        assert " ".join(word.word for word in found.words) == found.text == caption.text
        said = [token != toy_bundle.END for token in expected.tokens]
        ended += not all(said)
        np.testing.assert_allclose(
            np.stack([word.attention for word in found.words]).reshape(-1, 6), expected.attention[said], atol=1e-5
        )
    assert ended > 0, "some captions end by themselves, and the end token is no word"


def test_pieces_of_a_word_are_joined_and_their_attention_averaged() -> None:
    pieces = ("[PAD]", "[END]", "▁a", "▁run", "ning", "▁caf", "<0xC3>", "<0xA9>", ".", "▁")
    vocabulary = Vocabulary(pieces, "", frozenset((0, 1)), "sentencepiece")
    tokens = (2, 3, 4, 5, 6, 7, 8, 9, 1)
    attention = np.arange(9 * 2, dtype=np.float32).reshape(9, 2)
    caption = Caption("a running café.", tokens, (-1.0,) * 9, -1.0, {}, "end", attention)
    found = SeenCaption.of(caption, vocabulary, (1, 2))
    assert [word.word for word in found.words] == ["a", "running", "café."]
    assert [word.attention.tolist() for word in found.words] == [[[0, 1]], [[3, 4]], [[9, 10]]]


def test_unknown_words_are_left_out_as_in_the_text(captioner: Captioner) -> None:
    attention = np.eye(3, 6, dtype=np.float32)
    caption = Caption("dog", (toy_bundle.UNKNOWN, 5, toy_bundle.END), (-1.0,) * 3, -1.0, {}, "end", attention)
    (word,) = SeenCaption.of(caption, captioner.bundle.vocabulary, (2, 3)).words
    assert (word.word, word.attention.tolist()) == ("dog", [[0, 1, 0], [0, 0, 0]])


def test_json_has_the_numbers_of_the_caption(captioner: Captioner, photo: Path, tmp_path: Path) -> None:
    caption = captioner.caption(photo)
    write_attention(tmp_path / "out.json", photo, caption, captioner.bundle)
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["image", "caption", "grid", "words"]
    assert (found["image"], found["caption"], found["grid"]) == (str(photo), caption.text, [2, 3])
    assert [word["word"] for word in found["words"]] == caption.text.split()
    assert caption.attention is not None
    for word, expected in zip(found["words"], caption.attention, strict=False):
        assert np.shape(word["attention"]) == (2, 3)
        np.testing.assert_allclose(np.ravel(word["attention"]), expected, rtol=0, atol=5.1e-7)
        assert np.sum(word["attention"]) == pytest.approx(1, abs=1e-5)
        assert all(len(repr(number)) <= 8 or "e" in repr(number) for number in np.ravel(word["attention"]).tolist())


# Files, and what is refused.


def test_the_suffix_chooses_the_format(captioner: Captioner, photo: Path, tmp_path: Path) -> None:
    caption = captioner.caption(photo)
    words = len(caption.text.split())
    for name in ("a.png", "a.PNG", "a.gif", "a.json"):
        path = tmp_path / name
        write_attention(path, photo, caption, captioner.bundle)
        if path.suffix == ".json":
            assert len(json.loads(path.read_text())["words"]) == words
        else:
            picture: Any = Image.open(io.BytesIO(path.read_bytes()))
            assert picture.format == path.suffix[1:].upper()
            assert getattr(picture, "n_frames", 1) == (words if path.suffix == ".gif" else 1)
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "a.png", "a.PNG", "a.gif", "a.json"}
    expected = (tmp_path / "a.png").read_bytes()
    for source in (str(photo), photo.read_bytes(), toy_bundle.photographs(1)[0]):
        write_attention(str(tmp_path / "b.png"), source, caption, captioner.bundle)
        assert (tmp_path / "b.png").read_bytes() == expected


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_photograph_is_shown_upright(captioner: Captioner, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "turned.jpg"
    Image.new("RGB", (1200, 800), (10, 200, 30)).save(photo, exif=exif)
    caption = captioner.caption(photo)
    write_attention(tmp_path / "out.png", photo, caption, captioner.bundle)
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "out.png").read_bytes()))).astype(int)
    tile = np.abs(pixels[100 : 100 + 256, 24 : 24 + 171] - [10, 200, 30])
    assert tile.max() <= 3
    assert (pixels[100:356, 24 + 171] == pictures.PAPER).all()


@pytest.mark.parametrize("name", ["out.jpg", "out", "png", "out.png.txt", ".png"])
def test_another_suffix_is_refused_with_what_is_expected(captioner: Captioner, tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionsError, match=r"expected \.png \(a picture\), \.gif \(an animation\) or \.json"):
        check_attention_file(tmp_path / name, captioner.bundle)


def test_nothing_is_half_written(
    captioner: Captioner, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption = captioner.caption(photo)
    with pytest.raises(OutputError, match=r"out\.png: there is no folder .*nowhere\. Make it first"):
        write_attention(tmp_path / "nowhere" / "out.png", photo, caption, captioner.bundle)
    assert not (tmp_path / "nowhere").exists()

    out = tmp_path / "out.png"
    out.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"out\.png: cannot be written \(No space left on device\)"):
        write_attention(out, photo, caption, captioner.bundle)
    assert out.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out.png"}


def test_the_photograph_is_not_overwritten(captioner: Captioner, photo: Path) -> None:
    before = photo.read_bytes()
    (photo.parent / "link.png").hardlink_to(photo)
    for path in (photo, photo.parent / ".." / "photos" / "photo.png", photo.parent / "link.png"):
        with pytest.raises(OutputError, match="that is the photograph itself"):
            write_attention(path, photo, captioner.caption(photo), captioner.bundle)
    assert photo.read_bytes() == before


def test_attention_that_is_none_or_no_number(captioner: Captioner, photo: Path, tmp_path: Path) -> None:
    caption = captioner.caption(photo)
    assert caption.attention is not None
    broken = caption.attention.copy()
    broken[0, 0] = np.nan
    refused: list[tuple[Caption, type[CaptionliteError], str]] = [
        (replace(caption, attention=None), OptionsError, "decoded in a way that has none"),
        (replace(caption, attention=broken), InterpreterError, "no finite number"),
    ]
    for other, error, message in refused:
        with pytest.raises(error, match=message):
            write_attention(tmp_path / "out.png", photo, other, captioner.bundle)
    assert not (tmp_path / "out.png").exists()


def blind(family: str) -> Manifest:
    """The toy's manifest as that of a family whose decoder returns no attention."""
    manifest = toy_bundle.manifest()
    decoder = manifest.graphs["decoder"]
    outputs = tuple(spec for spec in decoder.outputs if spec.name != "attention")
    graphs = {**manifest.graphs, "decoder": GraphSpec(decoder.file, decoder.recipe, decoder.inputs, outputs)}
    return replace(manifest, family=family, graphs=graphs, attention=None)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("lstm", "the family lstm, which sees the photograph as one vector before the first word"),
        ("masked_lm", "the family masked_lm, which reads the photograph beside all the words at once"),
        ("later", "the family later, which returns no attention"),
    ],
)
def test_a_family_without_attention_says_why(family: str, reason: str) -> None:
    with pytest.raises(OptionsError, match=rf"'toy' is of {reason}.*transformer or gru_attention"):
        attention_grid(blind(family))


def test_a_bundle_from_before_the_grid_says_to_export_it_again() -> None:
    old = replace(toy_bundle.manifest(), format=(1, 1), attention=None)
    with pytest.raises(OptionsError, match=r"format 1\.1\) does not say how .* Export the bundle again"):
        attention_grid(old)
    assert attention_grid(toy_bundle.manifest()) == (2, 3)


def test_the_default_bundle_attends() -> None:
    assert attention_grid(Bundle.open().manifest) == (7, 7)


# The command.


def run(*args: object, **options: Any) -> Result:
    result = CliRunner().invoke(cli, ["caption", *map(str, args)], prog_name="captionlite", **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_writes_it_and_prints_as_before(toy_directory: Path, photo: Path, tmp_path: Path) -> None:
    plain = run(photo, "--bundle", toy_directory)
    for name in ("out.png", "out.gif", "out.json"):
        result = run(photo, "--bundle", toy_directory, "--attention", tmp_path / name)
        assert (result.exit_code, result.stdout, result.stderr) == (0, plain.stdout, "")
        assert (tmp_path / name).stat().st_size > 0
    record = json.loads(run(photo, "--bundle", toy_directory, "--json", "--attention", tmp_path / "2.json").stdout)
    written = json.loads((tmp_path / "2.json").read_text())
    assert written["caption"] == record["caption"] == plain.stdout.strip()
    assert written["image"] == record["image"] == str(photo)
    assert "attention" not in record


def test_the_command_takes_a_photograph_on_stdin(toy_directory: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run("-", "--bundle", toy_directory, "--attention", out, input=photo.read_bytes())
    assert result.exit_code == 0
    assert json.loads(out.read_text())["image"] == "-"
    assert (
        run("-", "--bundle", toy_directory, "--attention", tmp_path / "out.png", input=photo.read_bytes()).exit_code
        == 0
    )


def test_wrong_usage(toy_directory: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    for arguments, message in (
        ((photo, photo), "--attention shows one photograph, found 2 arguments"),
        ((photo.parent,), "--attention shows one photograph, found a folder"),
        ((photo, "--stream"), "leave out --stream"),
    ):
        result = run(*arguments, "--bundle", toy_directory, "--attention", out)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert run(photo, "--bundle", toy_directory, "--attention", tmp_path).exit_code == 2
    assert not out.exists()


def test_what_cannot_be_shown_is_refused_before_any_captioning(
    toy_directory: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    toy_bundle.write(old)
    toy_bundle.forge(old, lambda manifest: manifest.pop("attention"))
    for bundle in (old, toy_directory):
        Captioner.from_bundle(bundle)  # the self-check encodes too, at the first opening

    def never(*args: object) -> None:
        raise AssertionError("captioned")

    monkeypatch.setattr(Captioner, "encode", never)
    monkeypatch.setattr(Captioner, "caption", never)
    for bundle, out, message in (
        (old, tmp_path / "out.png", "Export the bundle again"),
        (toy_directory, tmp_path / "out.bmp", "the suffix '.bmp' says nothing"),
        (toy_directory, tmp_path / "no" / "out.png", "there is no folder"),
    ):
        result = run(photo, "--bundle", bundle, "--attention", out)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr


def test_a_bad_photograph_leaves_no_file(toy_directory: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photograph")
    result = run(bad, "--bundle", toy_directory, "--attention", tmp_path / "out.png")
    assert result.exit_code == 1
    assert "bad.jpg" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]
