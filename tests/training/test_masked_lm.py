"""The masked language model: its parameters, its masks, its prefixes, and both of its text encoders."""

from typing import Any

import harness
import keras
import numpy as np
import pytest

from captionlite.training.config import load_config
from captionlite.training.errors import ConfigError
from captionlite.training.families import build_family
from captionlite.training.families.masked_lm import MaskedLM
from captionlite.training.families.masked_parts import averaging
from captionlite.training.vocabulary import END_ID, MASK_ID, PAD_ID, START_ID, UNKNOWN_ID

SMALL, ALBERT = harness.MASKED_LM, harness.ALBERT
CONFIGS = [name for name in harness.CONFIGS if name.startswith("masked_lm")]


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return harness.CONFIGS[request.param]


def build(config: dict[str, Any]) -> MaskedLM:
    model = harness.build(config)
    assert isinstance(model, MaskedLM)
    return model


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def test_bimodal_albert_has_the_published_parameters() -> None:
    """ALBERT-base-v2: embeddings (30000 + 512 + 2) * 128 + 256 = 3,906,048; 128 -> 768: 99,072; one shared layer of
    attention 4 * (768 * 768 + 768), feed-forward 768 * 3072 * 2 + 3840 and two norms: 7,087,872; pooler 590,592.
    The head: (768 + 8192) * 128 + 128, a norm of 256, and two biases of 30,000.
    """
    preset = load_config("bimodal_albert")
    family = {**preset.family, "albert_weights": None}
    model = build_family(family, (2, 2, 2048), 30000)
    assert isinstance(model, MaskedLM)
    text, head = model.text, model.head
    embeddings = (text.token_embedding, text.position_embedding, text.segment_embedding, text.embeddings_layer_norm)
    shared = sum(layer.count_params() for layer in embeddings)
    assert text.count_params() == 11_683_584
    assert shared == 3_906_048
    assert head.count_params() + shared == 5_113_312
    assert model.count_params() == 12_890_848
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert trainable == head.count_params() == 1_207_264
    assert family["frozen"]
    assert model.output_bias_layer() is None
    logits = numpy(
        model.refine(np.full((1, 32), MASK_ID, "int32"), model.full_state(np.ones((1, 2, 2, 2048), "float32")))[
            "logits"
        ]
    )
    assert logits.shape == (1, 32, 30000)


def test_unfrozen_albert_trains_all_but_the_pooler_that_nothing_reads() -> None:
    model = build({**ALBERT, "frozen": False})
    untrained = {v.path for v in model.variables} - {v.path for v in model.trainable_variables}
    assert {path.split("/", 1)[0] for path in untrained if "seed_generator" not in path} == {"pooled_dense"}
    frozen = build({**ALBERT, "frozen": True})
    assert {v.path.split("/")[0] for v in frozen.trainable_variables} == {
        v.path.split("/")[0] for v in model.head.weights
    }


def test_head_is_one_dense_over_text_and_image_side_by_side() -> None:
    """What the published model writes as Dense(concatenate([text, image])), tied to the embeddings."""
    model = build({**SMALL, "memory_layers": 0, "image_grid": None, "length_head": False})
    head = model.head
    rng = np.random.default_rng(0)
    text = rng.normal(size=(5, 16)).astype("float32")
    features = rng.normal(size=(5, *harness.FEATURE_SHAPE)).astype("float32")
    found = numpy(head(text, model.image(features), model.embeddings()))
    kernel = np.concatenate([numpy(head.text_dense.kernel), numpy(head.image_dense.kernel)])
    x = np.concatenate([text, features.reshape(5, -1)], axis=1) @ kernel + numpy(head.text_dense.bias)
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * numpy(head.norm.gamma) + numpy(head.norm.beta)
    expected = x @ numpy(model.embeddings()).T + numpy(head.bias) + numpy(head.decoder_bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_grids_are_averaged_in_overlapping_parts() -> None:
    np.testing.assert_allclose(averaging(1, 7), np.full((1, 7), 1 / 7), atol=1e-7)
    np.testing.assert_allclose(averaging(2, 3), [[0.5, 0.5, 0], [0, 0.5, 0.5]])
    np.testing.assert_array_equal(averaging(3, 3), np.eye(3))
    with pytest.raises(ConfigError, match="image_grid is 8, expected 1 to 7"):
        averaging(8, 7)
    model = build({**SMALL, "image_grid": 1})
    features = np.random.default_rng(0).normal(size=(2, *harness.FEATURE_SHAPE)).astype("float32")
    expected = features.mean(axis=(1, 2)) @ numpy(model.head.image_dense.kernel)
    np.testing.assert_allclose(numpy(model.image(features)), expected, atol=1e-5)


CAPTIONS = np.array(
    [
        [START_ID, 5, 6, 7, 8, 9, 10, END_ID],
        [START_ID, 5, END_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID],
        [START_ID, UNKNOWN_ID, 6, UNKNOWN_ID, END_ID, PAD_ID, PAD_ID, PAD_ID],
    ]
    * 40,
    "int32",
)


@pytest.mark.parametrize(("share", "most"), [(0.15, 1), (0.5, 3), (None, 6)])
def test_masks_fall_on_words_alone_and_at_least_one(share: float | None, most: int) -> None:
    model = build({**SMALL, "mask_share": share})
    positions, counts, masked = (numpy(x) for x in model.choose_masks(CAPTIONS, training=True))
    chosen = masked != CAPTIONS
    assert (masked[chosen] == MASK_ID).all()
    assert (CAPTIONS[chosen] > MASK_ID).all()
    assert chosen.sum(axis=1).min() == 1
    assert chosen[::3].sum(axis=1).max() == most
    for row in range(len(CAPTIONS)):
        assert sorted(positions[row][counts[row]]) == sorted(np.flatnonzero(chosen[row]))
    assert set(np.flatnonzero(chosen[::3].any(axis=0))) == {1, 2, 3, 4, 5, 6}
    if share is None:
        assert set(chosen[::3].sum(axis=1)) == {1, 2, 3, 4, 5, 6}


def test_masks_are_drawn_anew_in_training_and_the_same_at_every_evaluation() -> None:
    model = build(SMALL)
    drawn = [numpy(model.choose_masks(CAPTIONS, training=True)[2]) for _ in range(2)]
    assert (drawn[0] != drawn[1]).any()
    kept = [numpy(model.choose_masks(CAPTIONS, training=False)[2]) for _ in range(2)]
    np.testing.assert_array_equal(*kept)


def test_loss_is_that_of_the_masked_words_alone(config: dict[str, Any]) -> None:
    model = build({**config, "prefix_weight": 0.0, "length_head": False})
    features, _ = harness.features_and_tokens(model)
    tokens = CAPTIONS[:6]
    loss, _, count = (float(x) for x in model.objective(features, tokens, pad_id=PAD_ID))
    _, _, masked = model.choose_masks(tokens, training=False)
    logits = numpy(model.refine(numpy(masked), model.full_state(np.repeat(features, 3, axis=0)))["logits"])
    chosen = numpy(masked) != tokens
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0][chosen]
    assert count == chosen.sum()
    assert loss == pytest.approx(expected.mean(), abs=1e-5)


def test_prefix_loss_is_teacher_forcing_without_unknown_words(config: dict[str, Any]) -> None:
    model = build({**config, "prefix_weight": 0.25, "length_head": False})
    masked_only = build({**config, "prefix_weight": 0.0, "length_head": False})
    features, _ = harness.features_and_tokens(model)
    tokens = CAPTIONS[:6]
    logits = numpy(model(features, tokens[:, :-1]))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    labels = tokens[:, 1:]
    losses = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    after = losses[(labels != PAD_ID) & (labels != UNKNOWN_ID)].mean()
    masked = float(masked_only.objective(features, tokens, pad_id=PAD_ID)[0])
    assert float(model.objective(features, tokens, pad_id=PAD_ID)[0]) == pytest.approx(
        0.25 * after + 0.75 * masked, abs=1e-5
    )


def test_bidirectional_step_sees_both_sides_within_the_prefix_and_causal_does_not() -> None:
    """The first word's own encoding must know the second one, or not: seen by changing what only it could pass on."""
    tokens = np.array([[START_ID, 5, 6, MASK_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID]], "int32")
    other = tokens.copy()
    other[0, 2] = 9
    shown = (np.arange(10) <= 3)[None]
    model = build({**SMALL, "memory_layers": 0})
    first = [numpy(model.encode(t, shown, []))[0, 1] for t in (tokens, other)]
    assert np.abs(first[0] - first[1]).max() > 1e-4
    causal = np.where(np.tril(np.ones((10, 10))), 0.0, -1e9).astype("float32")[None, None]
    first = [numpy(model.text(t, np.arange(10, dtype="int32"), causal, []))[0, 1] for t in (tokens, other)]
    np.testing.assert_allclose(first[0], first[1], atol=1e-6)


def test_refine_ignores_padding() -> None:
    """A caption's logits do not depend on how much padding stands behind it, nor on its captions in the batch."""
    model = build(SMALL)
    features, _ = harness.features_and_tokens(model, photographs=1)
    row = np.array([[START_ID, 5, MASK_ID, 7, END_ID] + [PAD_ID] * 5], "int32")
    alone = numpy(model.refine(row, model.full_state(features))["logits"])
    both = np.concatenate([row, np.array([[START_ID, *([MASK_ID] * 8), END_ID]], "int32")])
    together = model.refine(both, model.full_state(np.repeat(features, 2, axis=0)))
    np.testing.assert_allclose(numpy(together["logits"])[:1, :5], alone[:, :5], atol=1e-5)
    assert tuple(together["length_logits"].shape) == (2, 9)
    narrow = numpy(model.encode(row[:, :5], np.ones((1, 5)), model._cross_of(model.full_state(features))))
    np.testing.assert_allclose(
        numpy(model.head(narrow, numpy(model.image(features))[:, None], model.embeddings())), alone[:, :5], atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": 15}, "units must be a multiple of heads"),
        ({"text": "albert"}, "memory_layers must be 0"),
        ({"text": "albert", "memory_layers": 0, "prefix_attention": "causal"}, "must be 'bidirectional'"),
        ({"albert_weights": "somewhere"}, "albert_weights must be null"),
        ({"frozen": True}, "frozen must be false"),
        ({"mask_share": 0.0}, "mask_share must lie between 0 and 1"),
        ({"prefix_weight": 1.0}, "prefix_weight must lie"),
        ({"positions": 9, "text": "albert", "memory_layers": 0}, "max_length must be less than positions"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_family({**SMALL, **changes}, harness.FEATURE_SHAPE, harness.VOCABULARY)
