"""COCO, Conceptual Captions and tables as their owners lay them out, photographs in zips, and the options of a spec."""

import json
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ImageSpec
from captionlite.training.datasets import Dataset, load_dataset, photos
from captionlite.training.datasets.photos import ZippedPhoto
from captionlite.training.errors import DatasetError
from captionlite.training.extraction import Extraction
from captionlite.training.features import extract_features


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {split: [example.id for example in examples] for split, examples in dataset.splits.items()}


def write_coco(root: Path, year: int = 2014, photographs: int = 6) -> Path:
    """`photographs` train photographs and two val ones, two captions each, listed in another order than named."""
    for part, count, first in (("train", photographs, 1), ("val", 2, 1001)):
        folder = root / f"{part}{year}"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for i in reversed(range(first, first + count)):
            name = f"COCO_{part}{year}_{i:012d}.jpg" if year == 2014 else f"{i:012d}.jpg"
            Image.new("RGB", (40, 30), (i % 250, 2 * i % 250, 100)).save(folder / name)
            images.append({"id": i, "file_name": name, "height": 30, "width": 40, "license": 1})
            annotations += [{"image_id": i, "id": 10 * i + j, "caption": f" {part} {i}\nno {j}. "} for j in range(2)]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        (root / "annotations" / f"captions_{part}{year}.json").write_text(json.dumps(content))
    return root


def zip_folder(folder: Path) -> None:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        archive.mkdir(f"{folder.name}/")
        for file in folder.iterdir():
            archive.write(file, f"{folder.name}/{file.name}")
    shutil.rmtree(folder)


@pytest.mark.parametrize("year", [2014, 2017])
def test_coco_as_it_unpacks(tmp_path: Path, year: int) -> None:
    dataset = load_dataset(write_coco(tmp_path, year))
    assert dataset.name == f"coco{year}"
    assert "CC BY 4.0" in dataset.licence
    assert {split: len(examples) for split, examples in dataset.splits.items()} == {"train": 6, "dev": 2}
    first = dataset.split("train")[0]
    assert first.captions == ("train 6 no 0.", "train 6 no 1.")
    assert first.image == tmp_path / f"train{year}" / first.id
    assert dataset.report.lines() == []
    with pytest.raises(DatasetError, match="no split 'test'"):
        dataset.split("test")


def test_coco_in_its_zips_gives_the_same_features_as_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = load_dataset(write_coco(tmp_path / "folders"))
    root = write_coco(tmp_path / "zips")
    for folder in ("train2014", "val2014", "annotations"):
        zip_folder(root / folder)
    (root / "annotations.zip").rename(root / "annotations_trainval2014.zip")
    zipped = load_dataset(f"coco2014:{root}")
    assert names(zipped) == names(unpacked)
    assert [e.captions for e in zipped.examples] == [e.captions for e in unpacked.examples]
    photo = zipped.split("train")[0].image
    assert photo == ZippedPhoto(root / "train2014.zip", f"train2014/{zipped.split('train')[0].id}")
    for one, other in zip(zipped.examples, unpacked.examples, strict=True):
        np.testing.assert_array_equal(load_image(one.image, ImageSpec(8, 8)), load_image(other.image, ImageSpec(8, 8)))
    found = extract_features("mobilenet_v2", None, zipped.split("train"), tmp_path)
    assert len(found) == 6
    assert np.ptp(found.array, axis=0).max() > 0  # six different photographs
    monkeypatch.setattr(Extraction, "run", None)  # the cache is keyed by what the photographs hold, wherever they are
    assert extract_features("mobilenet_v2", None, unpacked.split("train"), tmp_path).folder == found.folder


def test_coco_images_below_images_and_a_part_that_is_missing(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "train2014").rename(tmp_path / "images" / "train2014")
    shutil.rmtree(tmp_path / "val2014")
    victim = sorted((tmp_path / "images" / "train2014").iterdir())[0]
    victim.rename(victim.with_name("stranger.jpg"))
    dataset = load_dataset(tmp_path)
    assert len(dataset.split("train")) == 5
    assert dataset.report.missing_photos == (victim.name,)
    assert dataset.report.photos_without_captions == 1
    with pytest.raises(DatasetError, match=r"'dev' \(COCO's val\) is left out: val2014/ or its \.zip is not in"):
        dataset.split("dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"captions_train2014\.json: not whole JSON"),
        ("[" * 100_000, "not whole JSON"),
        ("[]", "field 'images': expected a list"),
        ('{"images": [], "annotations": 3}', "field 'annotations': expected a list, found int"),
        ('{"images": [3], "annotations": []}', r"images\[0\]\.id: expected int, found None"),
        ('{"images": [{"id": true}], "annotations": []}', r"images\[0\]\.id: expected int, found True"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\]\.file_name: expected str"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}', r"annotations\[0\]\.image_id: 1 is not"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1}]}', r"annotations\[0\]\.caption: expected str"),
        ('{"images": [], "annotations": []}', "holds no captions"),
    ],
)
def test_coco_malformed_captions_are_named(tmp_path: Path, content: str, message: str) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "captions_train2014.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path)


def test_coco_without_photographs_or_with_a_broken_zip(tmp_path: Path) -> None:
    write_coco(tmp_path)
    shutil.rmtree(tmp_path / "train2014")
    shutil.rmtree(tmp_path / "val2014")
    with pytest.raises(DatasetError, match=r"no photographs with captions of COCO 2014.*train2014/ or its \.zip"):
        load_dataset(tmp_path)
    (tmp_path / "train2014.zip").write_bytes(b"PK\3\4 and nothing more")
    with pytest.raises(DatasetError, match=r"train2014\.zip: not a whole zip file"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no photographs with captions of COCO 2017"):
        load_dataset(f"coco2017:{tmp_path}")


def test_zipped_photographs_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.write(tmp_path / "x.png", "in/x.png")
        stream.writestr("in/damaged.png", bytes(range(250)) * 40)
        stream.writestr("in/empty.png", b"")
        stream.writestr("in/large.png", bytes(3000))
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as stream:
        start = stream.getinfo("in/damaged.png").header_offset + 30 + len("in/damaged.png")
    data[start + 20 : start + 60] = bytes(40)
    archive.write_bytes(data)
    monkeypatch.setattr(photos, "MAX_PHOTO_BYTES", 2999 + 7001)
    spec = ImageSpec(4, 4)
    assert load_image(ZippedPhoto(archive, "in/x.png"), spec).shape == (4, 4, 3)
    for member, message in (("in/damaged.png", "damaged"), ("in/empty.png", "empty"), ("in/none.png", "no longer in")):
        with pytest.raises(ImageError, match=rf"^{archive}/{member}: .*{message}"):
            load_image(ZippedPhoto(archive, member), spec)
    monkeypatch.setattr(photos, "MAX_PHOTO_BYTES", 2999)
    with pytest.raises(ImageError, match="unpacks to 3000 bytes, expected at most 2999"):
        load_image(ZippedPhoto(archive, "in/large.png"), spec)
    with pytest.raises(ImageError, match="No such file"):
        load_image(ZippedPhoto(tmp_path / "none.zip", "a"), spec)


ADDRESSES = [f"http://example.com/{i}.jpg?size=1" for i in range(8)]


def write_conceptual(root: Path, photographs: list[str], folder: str = "training") -> Path:
    """Eight rows; files of the given names below `folder`."""
    (root / "Train_GCC-training.tsv").write_text("".join(f"caption {i}\t{a}\n" for i, a in enumerate(ADDRESSES)))
    for name in photographs:
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(b"x")
    return root


def checksum(row: int) -> int:
    return zlib.crc32(ADDRESSES[row].encode())


@pytest.mark.parametrize(
    "photographs",
    [
        [
            "00000/000000001.jpg",
            "00000/000000001.json",
            "00000/000000001.txt",
            "00000/000000006.webp",
            "00000_stats.json",
        ],
        [f"1_{checksum(1)}", f"6_{checksum(6)}", f"5_{checksum(4)}", "_SUCCESS", "8_12345"],
        [f"{checksum(1)}.jpg", f"{checksum(6)}.jpg", "12345678.jpg"],
        ["1", "6.png", "999.jpg", "notes.md"],
    ],
    ids=["img2dataset", "row and checksum", "checksum", "row"],
)
def test_conceptual_captions_finds_rows_by_the_names_downloaders_give(tmp_path: Path, photographs: list[str]) -> None:
    dataset = load_dataset(write_conceptual(tmp_path, photographs))
    assert dataset.name == "conceptual"
    assert [(e.id, e.captions) for e in dataset.split("train")] == [
        ("train-000000001", ("caption 1",)),
        ("train-000000006", ("caption 6",)),
    ]
    assert "train: 6 of 8 captions have no downloaded photograph, skipped" in dataset.report.lines()
    assert dataset.split("train")[0].image.name.split("_")[0].startswith(("0000", "1", str(checksum(1))))


def test_conceptual_captions_counts_strangers_and_reads_its_validation_part(tmp_path: Path) -> None:
    write_conceptual(tmp_path, [f"2_{checksum(2)}", f"3_{checksum(2)}"])
    (tmp_path / "Validation_GCC-1.1.0-Validation.tsv").write_text("hello\thttp://example.com/a\r\n", encoding="utf-8")
    (tmp_path / "Image_Labels_Subset_Train_GCC-Labels-training.tsv").write_text("not\tthis\tone\n")
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "0.jpg").write_bytes(b"x")
    dataset = load_dataset(f"conceptual:{tmp_path}")
    assert names(dataset) == {"train": ["train-000000002"], "dev": ["dev-000000000"]}
    assert dataset.split("dev")[0].captions == ("hello",)
    assert any("1 files in" in line and "belong to no caption" in line for line in dataset.report.lines())


@pytest.mark.parametrize("line", ["no tab at all", "\thttp://example.com", "caption\t", ""])
def test_conceptual_captions_malformed_lines_are_named(tmp_path: Path, line: str) -> None:
    file = write_conceptual(tmp_path, ["1.jpg"]) / "Train_GCC-training.tsv"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DatasetError, match=r"Train_GCC-training\.tsv, line 9: expected 'caption<tab>address'"):
        load_dataset(tmp_path)


def test_conceptual_captions_without_photographs_says_what_it_expects(tmp_path: Path) -> None:
    write_conceptual(tmp_path, [])
    with pytest.raises(DatasetError, match=r"no photographs in .*training\..*named by row number or by the CRC-32"):
        load_dataset(tmp_path)
    write_conceptual(tmp_path, ["x.jpg"])
    with pytest.raises(DatasetError, match="no photographs with captions"):
        load_dataset(tmp_path)


def write_table(folder: Path, name: str, text: str) -> Path:
    for letter in "abcd":
        (folder / f"{letter}.jpg").write_bytes(b"x")
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "mine.csv",
            'image,caption,split\na.jpg,"A dog, and a cat.",train\nb.jpg,Two.,dev\na.jpg,"A ""pet""",train\n',
        ),
        (
            "mine.csv",
            'Image;Split;Caption\r\na.jpg;train;A dog, and a cat.\r\nb.jpg;dev;Two.\r\na.jpg;train;"A ""pet"""',
        ),
        (
            "mine.tsv",
            (
                "\ufeffimage\tcaption\tsplit\tmore\na.jpg\tA dog, and a cat.\ttrain\t1\n\nb.jpg\tTwo.\tdev\t2\n"
                'a.jpg\t"A ""pet"""\ttrain\t3\n'
            ),
        ),
        (
            "captions.csv",
            'split,captions,image\ntrain,"[""A dog, and a cat."", ""A \\""pet\\""""]",a.jpg\ndev,"[""Two.""]",b.jpg\n',
        ),
    ],
    ids=["comma", "semicolon", "tab", "json"],
)
def test_tables(tmp_path: Path, name: str, text: str) -> None:
    file = write_table(tmp_path, name, text)
    for spec in (file, tmp_path, f"table:{file}"):
        dataset = load_dataset(spec)
        assert dataset.split("train")[0].captions == ("A dog, and a cat.", 'A "pet"')
        assert names(dataset) == {"train": ["a.jpg"], "dev": ["b.jpg"]}
    assert dataset.name == ("mine" if name != "captions.csv" else tmp_path.name)


def test_table_without_splits_sets_every_tenth_image_apart(tmp_path: Path) -> None:
    rows = [f"{i:02d}.jpg,number {i} {j}\n" for i in range(1, 21) for j in range(5)]
    for i in range(1, 21):
        (tmp_path / f"{i:02d}.jpg").write_bytes(b"x")
    dataset = load_dataset(write_table(tmp_path, "x.csv", "image,caption\n" + "".join(rows)))
    assert names(dataset)["dev"] == ["10.jpg", "20.jpg"]
    assert {len(example.captions) for example in dataset.examples} == {5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: no column 'image'; found none"),
        ("file,caption\na.jpg,x\n", "line 1: no column 'image'; found file, caption"),
        ("image,text\na.jpg,x\n", "line 1: expected one of the columns 'caption' and 'captions'"),
        ("image,caption,captions\na.jpg,x,[]\n", "line 1: expected one of the columns"),
        ("image,caption\n", "holds no rows"),
        ("image,caption\na.jpg,x,y\n", "line 2: 3 cells, expected 2"),
        ("image,caption\n,x\n", "line 2, column 'image': .*found ''"),
        ("image,captions\na.jpg,x\n", "line 2, column 'captions': expected a JSON list.*found 'x'"),
        ("image,captions\na.jpg,[1]\n", "line 2, column 'captions'"),
        ("image,caption,split\na.jpg,x,\nb.jpg,y,dev\n", "line 2, field 'split': missing here"),
        ("image,caption,split\na.jpg,x,dev\na.jpg,y,train\n", "line 3, field 'split': a.jpg is 'train' here"),
        ("image,caption\nz.jpg,x\n", "not one photograph"),
        ("image,caption\na.jpg," + "x" * 200_000 + "\n", "line 2: not a row of cells"),
    ],
)
def test_malformed_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"table:{write_table(tmp_path, 'x.csv', text)}")


def test_options_take_the_first_captions_after_shuffling_and_set_a_dev_part_apart(tmp_path: Path) -> None:
    whole = load_dataset(write_coco(tmp_path, photographs=40))
    some = load_dataset(f"coco2014:{tmp_path}?captions=30")
    kept = [caption for example in some.split("train") for caption in example.captions]
    assert len(kept) == 30
    assert set(kept) < {caption for example in whole.split("train") for caption in example.captions}
    assert {len(example.captions) for example in some.split("train")} == {1, 2}  # captions are drawn, not photographs
    assert some.splits["dev"] == whole.splits["dev"]
    assert load_dataset(f"{tmp_path}?captions=30").splits == some.splits
    assert load_dataset(f"{tmp_path}?captions=30&seed=2").splits != some.splits
    assert load_dataset(f"{tmp_path}?captions=1000000").splits == whole.splits
    assert f"30 of 80 training captions taken, of {len(some.split('train'))} photographs" in some.report.lines()

    split = load_dataset(f"{tmp_path}?captions=30&dev=0.2")
    assert len(split.split("dev")) == round(0.2 * len(some.split("train")))
    assert {*split.split("train"), *split.split("dev")} == set(some.split("train"))
    assert len(split.examples) == len(some.split("train"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("captions=0", "option 'captions': expected a whole number, found '0'"),
        ("captions=all", "option 'captions'"),
        ("dev=1", "option 'dev': expected a share between 0 and 1"),
        ("dev=nan", "option 'dev'"),
        ("seed=-1", "option 'seed'"),
        ("caption=3", "'caption' is not an option; the options are captions=N, dev=SHARE and seed=N"),
        ("dev=0.01", r"option dev=0\.01: of 6 photographs 0"),
    ],
)
def test_options_that_cannot_be_met(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"coco2014:{write_coco(tmp_path)}?{options}")


def test_a_path_with_a_question_mark_is_a_path(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "really?captions=3")
    assert len(load_dataset(root).split("train")) == 6
    assert len(load_dataset(f"coco2014:{root}").split("train")) == 6
    assert len(load_dataset(f"coco2014:{root}?captions=3").split("train")) <= 3
