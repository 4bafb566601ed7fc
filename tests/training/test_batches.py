"""Batches: every caption once, groups of one photograph together, the same order after a resume."""

from collections import Counter

import numpy as np
import pytest

from captionlite.training.batches import Batch, BatchPlan, Source, make_batch

PAD, START, END = 0, 2, 3


def source(photos: int = 30, captions: int = 5, weight: float = 1.0, name: str = "a") -> Source:
    rng = np.random.default_rng(photos)
    texts = {
        f"{name}{i}": [[START, *rng.integers(4, 50, rng.integers(2, 20)).tolist(), END] for _ in range(captions)]
        for i in range(photos)
    }
    return Source(name, tuple(texts), texts, weight)


def plan(*sources: Source, **changes: object) -> BatchPlan:
    settings = {
        "batch_size": 8,
        "captions_per_photo": 1,
        "max_length": 30,
        "pad_id": PAD,
        "seed": 1,
        "flip": True,
        **changes,
    }
    return BatchPlan(sources, **settings)  # type: ignore[arg-type]


def captions_of(batches: list[Batch], k: int) -> Counter[tuple[str, tuple[int, ...]]]:
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for batch in batches:
        for i, row in enumerate(batch.tokens):
            seen[batch.rows[i // k][1], tuple(int(t) for t in row if t != PAD)] += 1
    return seen


@pytest.mark.parametrize("k", [1, 5])
def test_every_caption_of_every_photograph_comes_each_epoch(k: int) -> None:
    data = source(photos=32)
    batches = list(plan(data, captions_per_photo=k, batch_size=8 * k).epoch(0))
    seen = captions_of(batches, k)
    expected = {(i, tuple(c)) for i, captions in data.captions.items() for c in captions}
    assert set(seen) == expected
    assert sum(seen.values()) - len(expected) < 8 * k  # only the last batch is filled up by repetition
    assert {batch.tokens.shape[0] for batch in batches} == {8 * k}


def test_epochs_differ_and_are_functions_of_the_seed_alone() -> None:
    first, again = (list(plan(source()).epoch(0)) for _ in range(2))
    other = list(plan(source(), seed=2).epoch(0))
    later = list(plan(source()).epoch(1))
    assert all(np.array_equal(a.tokens, b.tokens) and a.rows == b.rows for a, b in zip(first, again, strict=True))
    for different in (other, later):
        assert [b.rows for b in different] != [b.rows for b in first]


@pytest.mark.parametrize("steps", [None, 7])
def test_resuming_in_the_middle_continues_with_the_next_batch(steps: int | None) -> None:
    whole = [b.rows for epoch in range(3) for b in plan(source(), steps=steps).epoch(epoch)]
    fresh = plan(source(), steps=steps)
    start = len(whole) // 3 + 2
    rest = [b.rows for b in fresh.epoch(1, 2)] + [b.rows for b in fresh.epoch(2)]
    assert rest == whole[start:]


def test_steps_go_on_through_the_data_instead_of_starting_over() -> None:
    data = source(photos=32, captions=1)
    cut = plan(data, steps=2, flip=False)
    seen = [i for epoch in range(2) for b in cut.epoch(epoch) for _, i, _ in b.rows]
    assert len(set(seen)) == 32


def test_random_caption_takes_each_photograph_once_and_varies_the_caption() -> None:
    data = source(photos=32)
    once = plan(data, draw="random_caption")
    chosen = [captions_of(list(once.epoch(e)), 1) for e in range(2)]
    for seen in chosen:
        assert Counter(i for i, _ in seen) == Counter(dict.fromkeys(data.ids, 1))
    assert chosen[0] != chosen[1]


def test_weights_say_how_often_a_data_set_comes() -> None:
    once, twice, half = source(16, name="a"), source(16, 5, 2.0, "b"), source(16, 5, 0.5, "c")
    batches = list(plan(once, twice, half, draw="random_caption", batch_size=1).epoch(0))
    assert Counter(number for b in batches for number, _, _ in b.rows) == {0: 16, 1: 32, 2: 8}


def test_about_half_are_flipped_or_none() -> None:
    flips = [flipped for b in plan(source(200)).epoch(0) for _, _, flipped in b.rows]
    assert 0.4 < np.mean(flips) < 0.6
    assert not any(f for b in plan(source(), flip=False).epoch(0) for _, _, f in b.rows)


def test_padding_widths_are_buckets_and_long_captions_are_cut() -> None:
    batch = make_batch([((0, "x", False), [[START, *range(4, 10), END]])], max_length=30, pad_id=PAD)
    assert batch.tokens.tolist() == [[START, 4, 5, 6, 7, 8, 9, END, PAD]]  # 7 steps, rounded up to 8
    cut = make_batch([((0, "x", False), [[START, *range(4, 60), END]])], max_length=10, pad_id=PAD)
    assert cut.tokens.tolist() == [[START, *range(4, 14)]]


def test_data_smaller_than_a_batch_still_trains() -> None:
    batches = list(plan(source(photos=3, captions=1), batch_size=8).epoch(0))
    assert [b.tokens.shape[0] for b in batches] == [8]
    assert {i for _, i, _ in batches[0].rows} == {"a0", "a1", "a2"}
