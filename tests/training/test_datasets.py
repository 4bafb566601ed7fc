"""Data sets in the layouts in which people find them, and the faults that real copies have."""

import json
from pathlib import Path

import pytest

from captionlite.training.datasets import load_dataset
from captionlite.training.errors import DatasetError

FLICKR8K = Path(__file__).parents[2] / "../shared/data/flickr8k"


def write_flickr8k(root: Path, photo_folder: str = "Flicker8k_Dataset", text_folder: str = ".") -> Path:
    """Six photographs, two captions each, splits 3/1/1; d.jpg is in no split. The files are not real JPEGs."""
    photos, text = root / photo_folder, root / text_folder
    photos.mkdir(parents=True)
    text.mkdir(parents=True, exist_ok=True)
    names = [f"{letter}.jpg" for letter in "abcdef"]
    for name in names:
        (photos / name).write_bytes(b"x")
    lines = [f"{name}#{i}\tA dog number {i} of {name[0]} .\n" for name in names for i in range(2)]
    (text / "Flickr8k.token.txt").write_text("".join(lines))
    for split, members in {"train": names[:3], "dev": names[4:5], "test": names[5:]}.items():
        (text / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in members))
    return root


@pytest.mark.parametrize(
    ("photo_folder", "text_folder"),
    [
        ("Flicker8k_Dataset", "."),
        ("Flicker8k_Dataset", "Flickr8k_text"),
        ("Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_text"),
        ("Images", "."),
        ("images", "text"),
    ],
)
def test_flickr8k_layouts(tmp_path: Path, photo_folder: str, text_folder: str) -> None:
    dataset = load_dataset(write_flickr8k(tmp_path, photo_folder, text_folder))
    assert dataset.name == "flickr8k"
    assert {name: [e.id for e in examples] for name, examples in dataset.splits.items()} == {
        "train": ["a.jpg", "b.jpg", "c.jpg"],
        "dev": ["e.jpg"],
        "test": ["f.jpg"],
    }
    first = dataset.split("train")[0]
    assert first.captions == ("A dog number 0 of a .", "A dog number 1 of a .")
    assert first.image == tmp_path / photo_folder / "a.jpg"
    assert first.image.is_file()
    assert dataset.report.lines() == []
    assert len(dataset.examples) == 5


def test_flickr8k_given_as_its_photo_folder_finds_text_beside_it(tmp_path: Path) -> None:
    write_flickr8k(tmp_path, text_folder="Flickr8k_text")
    assert len(load_dataset(f"flickr8k:{tmp_path / 'Flicker8k_Dataset'}").split("train")) == 3


def test_flickr8k_captions_as_csv(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    (tmp_path / "Flickr8k.token.txt").unlink()
    rows = ["image,caption\n", *(f'{letter}.jpg,"One, two {letter} ."\n' for letter in "abcdef"), "a.jpg,a, b\n"]
    (tmp_path / "captions.txt").write_text("".join(rows))
    assert load_dataset(tmp_path).split("train")[0].captions == ("One, two a .", "a, b")


def test_flickr8k_caption_without_its_photograph_is_skipped_and_listed(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / "b.jpg").unlink()
    dataset = load_dataset(tmp_path)
    assert [example.id for example in dataset.split("train")] == ["a.jpg", "c.jpg"]
    assert dataset.report.missing_photos == ("b.jpg",)
    assert "b.jpg" in dataset.report.lines()[0]


def test_flickr8k_numbered_photo_name_of_the_published_file(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    with (tmp_path / "Flickr8k.token.txt").open("a") as stream:
        stream.write("2258277193_586949ec62.jpg.1#0\tpeople waiting\n2258277193_586949ec62.jpg#1\tSome people .\n")
        stream.write("a.jpg.1#0\tone more of a\n")
    dataset = load_dataset(tmp_path)
    assert dataset.report.missing_photos == ("2258277193_586949ec62.jpg",)
    assert dataset.split("train")[0].captions[-1] == "one more of a"


def test_flickr8k_split_entries_without_photograph_or_captions(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / "silent.jpg").write_bytes(b"x")
    with (tmp_path / "Flickr_8k.trainImages.txt").open("a") as stream:
        stream.write("ghost.jpg\nsilent.jpg\n")
    report = load_dataset(tmp_path).report
    assert report.missing_photos == ("ghost.jpg",)
    assert report.photos_without_captions == 1
    assert "1 photographs without captions" in "\n".join(report.lines())


def test_flickr8k_missing_split_file_is_noted_and_explained_when_asked_for(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    dataset = load_dataset(tmp_path)
    assert set(dataset.splits) == {"train", "dev"}
    with pytest.raises(DatasetError, match=r"no split 'test'.*train \(3\), dev \(1\).*Flickr_8k.testImages.txt"):
        dataset.split("test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no splits", "none of the split files"),
        ("no photos", "no photo folder"),
        ("no captions", "no caption file"),
        ("empty captions", "holds no captions"),
        ("no tab", "Flickr8k.token.txt, line 13: expected"),
        ("latin-1", "not UTF-8"),
        ("empty split", "Flickr_8k.devImages.txt: empty"),
        ("overlap", "e.jpg is also in"),
    ],
)
def test_flickr8k_faults_name_file_and_next_step(tmp_path: Path, damage: str, message: str) -> None:
    write_flickr8k(tmp_path)
    tokens = tmp_path / "Flickr8k.token.txt"
    if damage == "no splits":
        for path in tmp_path.glob("*Images.txt"):
            path.unlink()
    elif damage == "no photos":
        (tmp_path / "Flicker8k_Dataset").rename(tmp_path / "pictures")
    elif damage == "no captions":
        tokens.unlink()
    elif damage == "empty captions":
        tokens.write_text("\n")
    elif damage == "no tab":
        tokens.write_text(tokens.read_text() + "a.jpg#5 no tab here\n")
    elif damage == "latin-1":
        tokens.write_bytes("a.jpg#0\tcaf\xe9\n".encode("latin-1"))
    elif damage == "empty split":
        (tmp_path / "Flickr_8k.devImages.txt").write_text("\n")
    elif damage == "overlap":
        (tmp_path / "Flickr_8k.testImages.txt").write_text("e.jpg\n")
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"flickr8k:{tmp_path}")


def test_flickr8k_windows_line_endings_and_byte_order_mark(tmp_path: Path) -> None:
    write_flickr8k(tmp_path)
    for path in tmp_path.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    dataset = load_dataset(tmp_path)
    assert dataset.report.lines() == []
    assert dataset.split("train")[0].captions[0] == "A dog number 0 of a ."


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="the real Flickr8k is not on this machine")
def test_the_real_flickr8k() -> None:
    dataset = load_dataset(FLICKR8K)
    assert {name: len(examples) for name, examples in dataset.splits.items()} == {
        "train": 6000,
        "dev": 1000,
        "test": 1000,
    }
    assert all(len(example.captions) == 5 for example in dataset.examples)
    assert dataset.report.missing_photos == ("2258277193_586949ec62.jpg",)


def write_jsonl(folder: Path, rows: list[dict[str, object]], name: str = "captions.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if isinstance(row.get("image"), str):
            photo = folder / str(row["image"])
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(b"x")
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_jsonl_without_splits_sets_every_tenth_line_apart(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"image": f"images/{i}.jpg", "captions": [f"number {i}"]} for i in range(1, 26)]
    dataset = load_dataset(write_jsonl(tmp_path / "mine", rows).parent)
    assert dataset.name == "mine"
    assert [example.id for example in dataset.split("dev")] == ["10.jpg", "20.jpg"]
    assert len(dataset.split("train")) == 23
    assert dataset.split("train")[0].image == tmp_path / "mine" / "images" / "1.jpg"


def test_jsonl_blank_lines_count_as_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"image": f"{i}.jpg", "captions": ["x"]} for i in range(10)])
    path.write_text("\n" + path.read_text())
    assert [example.id for example in load_dataset(path).split("dev")] == ["8.jpg"]


def test_jsonl_with_splits_joins_lines_of_one_image(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": "a.jpg", "captions": ["one", "  "], "split": "train", "more": 1},
        {"image": "b.jpg", "captions": ["three"], "split": "test"},
        {"image": "a.jpg", "captions": ["two"], "split": "train"},
    ]
    dataset = load_dataset(write_jsonl(tmp_path, rows, "set.jsonl"))
    assert dataset.name == "set"
    assert dataset.split("train")[0].captions == ("one", "two")
    assert [example.id for example in dataset.split("test")] == ["b.jpg"]
    with pytest.raises(DatasetError, match="no split 'dev'"):
        dataset.split("dev")


def test_jsonl_line_separators_inside_a_caption(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "captions.jsonl").write_text('{"image": "a.jpg", "captions": ["one\u2028two"]}\r\n', encoding="utf-8")
    assert load_dataset(tmp_path).split("train")[0].captions == ("one\u2028two",)


def test_jsonl_missing_photographs_and_captions_are_reported(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"image": f"{name}.jpg", "captions": ["x"]} for name in "abc"]
    path = write_jsonl(tmp_path, [*rows, {"image": "silent.jpg", "captions": []}])
    (tmp_path / "b.jpg").unlink()
    dataset = load_dataset(path)
    assert dataset.report.missing_photos == ("b.jpg",)
    assert dataset.report.photos_without_captions == 1
    assert len(dataset.examples) == 2


def test_jsonl_same_file_name_in_two_folders_keeps_ids_unique(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"image": f"{folder}/1.jpg", "captions": [folder]} for folder in ("x", "y")])
    assert [example.id for example in load_dataset(path).examples] == ["x/1.jpg", "y/1.jpg"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ('{"captions": ["x"]}', "line 2, field 'image': .*found None"),
        ('{"image": 3, "captions": ["x"]}', "line 2, field 'image'"),
        ('{"image": "a\\u0000.jpg", "captions": ["x"]}', "line 2, field 'image'"),
        ('{"image": "a.jpg", "captions": "x"}', "line 2, field 'captions': expected a list"),
        ('{"image": "a.jpg", "captions": [null]}', "line 2, field 'captions'"),
        ('{"image": "a.jpg", "captions": ["x"], "split": 1}', "line 2, field 'split'"),
        ('{"image": "b.jpg", "captions": ["x"], "split": "dev"}', "line 1, field 'split': missing here"),
    ],
)
def test_jsonl_malformed_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write_jsonl(tmp_path, [{"image": "a.jpg", "captions": ["x"]}])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DatasetError, match=message):
        load_dataset(path)


def test_jsonl_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"image": "a.jpg", "captions": ["x"], "split": split} for split in ("train", "dev")])
    with pytest.raises(DatasetError, match=r"line 2, field 'split': a\.jpg is 'dev' here and 'train' further up"):
        load_dataset(path)


def test_jsonl_without_any_photograph_says_where_it_looked(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"image": "a.jpg", "captions": ["x"]}])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DatasetError, match="not one photograph") as error:
        load_dataset(path)
    assert str(tmp_path) in str(error.value)


def test_unknown_layouts_and_kinds(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no such file or folder"):
        load_dataset(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"not a known data set layout.*Flicker8k_Dataset"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetError, match="'coco' is not a kind of data set; the kinds are: flickr8k, coco2014, "):
        load_dataset(f"coco:{tmp_path}")
    with pytest.raises(DatasetError, match=r"expected a \.jsonl file"):
        load_dataset(f"jsonl:{tmp_path}")


def test_undecodable_photographs_leave_the_splits_and_enter_the_report(tmp_path: Path) -> None:
    dataset = load_dataset(write_flickr8k(tmp_path)).without_undecodable(["b.jpg"])
    assert [example.id for example in dataset.split("train")] == ["a.jpg", "c.jpg"]
    assert dataset.report.undecodable_photos == ("b.jpg",)
    assert "cannot be decoded" in dataset.report.lines()[0]
    assert dataset.without_undecodable([]) is dataset
