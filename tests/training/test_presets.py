"""The published systems' sizes, counted from the models that are built, against arithmetic by hand."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from captionlite.runtime.cli import cli
from captionlite.training.config import load_config, our_figures, preset_names
from captionlite.training.errors import ConfigError
from captionlite.training.preset_facts import preset_facts

# show_and_tell, by hand from its row: vocabulary 8769, features 2048, bottlenecks 120, LSTM 300, embedding 100.
#   image bottleneck      2048 * 120 + 120                    =   245,880
#   h0, which is c0 too    120 * 300 + 300                    =    36,300
#   words                 8769 * 100                          =   876,900
#   LSTM              4 * (100 * 300 + 300 * 300 + 300)       =   481,200
#   logits bottleneck      300 * 120 + 120                    =    36,120
#   logits                 120 * 8769 + 8769                  = 1,061,049
SHOW_AND_TELL = {
    "image_bottleneck": 245_880,
    "first_state": 36_300,
    "token_embedding": 876_900,
    "lstm": 481_200,
    "logits_bottleneck": 36_120,
    "head": 1_061_049,
}
# show_attend_tell: vocabulary 5000, features 2048, projection and embedding 256, attention 512, GRU 512.
#   projection            2048 * 256 + 256                    =   524,544
#   attention   W1         256 * 512 + 512 = 131,584
#               W2         512 * 512 + 512 = 262,656
#               V          512 * 1 + 1     = 513              =   394,753
#   words                 5000 * 256                          = 1,280,000
#   GRU               3 * (512 * 512 + 512 * 512 + 2 * 512)   = 1,575,936      (input: context 256 and word 256)
#   Dense                  512 * 512 + 512                    =   262,656
#   logits                 512 * 5000 + 5000                  = 2,565,000
SHOW_ATTEND_TELL = {
    "projection": 524_544,
    "attention": 394_753,
    "token_embedding": 1_280_000,
    "gru": 1_575_936,
    "hidden": 262_656,
    "head": 2_565_000,
}
# visual_transformer: vocabulary 5000, features 576, units 256, 2 heads of 256, feed-forward 512, 50 positions.
#   self-attention    3 * (256 * 512 + 512) + 512 * 256 + 256                 = 526,080
#   cross-attention        256 * 512 + 512 + 2 * (576 * 512 + 512) + 131,328  = 853,760
#   feed-forward           256 * 512 + 512 + 512 * 256 + 256                  = 262,912
#   3 normalisations   3 * 2 * 256                                            =   1,536
#   a layer                                                                   = 1,644,288
#   words 5000 * 256 = 1,280,000; positions 50 * 256 = 12,800; logits 256 * 5000 + 5000 = 1,285,000
#   the banned words' and the log frequencies' constant: 5000, not trained
VISUAL_TRANSFORMER = {
    "token_embedding": 1_280_000,
    "position_embedding": 12_800,
    "decoder_0": 1_644_288,
    "decoder_1": 1_644_288,
    "head": 1_285_000,
    "token_bias": 5_000,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "show_and_tell": {
        "parts": SHOW_AND_TELL,
        "total": 2_737_449,
        "trainable": 2_737_449,
        "vocabulary_size": 8769,
        "feature_shape": (8, 8, 2048),
        "seen_shape": (2048,),
        "image_size": (299, 299),
    },
    "show_attend_tell": {
        "parts": SHOW_ATTEND_TELL,
        "total": 6_602_889,
        "trainable": 6_602_889,
        "vocabulary_size": 5000,
        "feature_shape": (8, 8, 2048),
        "seen_shape": (8, 8, 2048),
        "image_size": (299, 299),
    },
    "visual_transformer": {
        "parts": VISUAL_TRANSFORMER,
        "total": 5_871_376,
        "trainable": 5_866_376,
        "vocabulary_size": 5000,
        "feature_shape": (7, 7, 576),
        "seen_shape": (7, 7, 576),
        "image_size": (224, 224),
    },
    # bimodal_albert: the head's own Dense (8192 + 768) * 128 + 128 = 1,147,008, norm 256, two biases of 30,000; counted
    # with the word embeddings that it shares, 30,000 * 128 + 512 positions and 2 segments * 128, it has 5,113,312.
    "bimodal_albert": {
        "parts": {"albert": 11_683_584, "head": 1_207_264},
        "total": 12_890_848,
        "trainable": 1_207_264,
        "vocabulary_size": 30_000,
        "feature_shape": (2, 2, 2048),
        "seen_shape": (2, 2, 2048),
        "image_size": (128, 129),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_system_has_the_published_size(name: str) -> None:
    expected = PUBLISHED[name]
    facts = preset_facts(load_config(name))
    assert facts.decoder.parts == expected["parts"]
    assert (facts.decoder.total, facts.decoder.trainable) == (expected["total"], expected["trainable"])
    assert sum(facts.decoder.parts.values()) == facts.decoder.total
    assert (facts.vocabulary_size, facts.vocabulary_size_is) == (expected["vocabulary_size"], "published")
    assert (facts.feature_shape, facts.seen_shape) == (expected["feature_shape"], expected["seen_shape"])
    assert facts.image_size == expected["image_size"]
    assert facts.published["source"].startswith("https://")


@pytest.mark.parametrize(
    ("name", "training"),
    [  # the first two train all their epochs; only the third stops early
        (
            "show_and_tell",
            {"batch_size": 64, "epochs": 30, "steps_per_epoch": 1000, "draw": "random_caption", "patience": 30},
        ),
        (
            "show_attend_tell",
            {"batch_size": 64, "epochs": 20, "steps_per_epoch": None, "draw": "every_caption", "patience": 20},
        ),
        ("visual_transformer", {"batch_size": 32, "steps_per_epoch": 100, "draw": "every_caption", "patience": 5}),
    ],
)
def test_a_published_system_trains_as_published(name: str, training: dict[str, Any]) -> None:
    config = load_config(name)
    assert {key: getattr(config, key) for key in training} == training
    rates = {"show_and_tell": 1e-3, "show_attend_tell": 1e-3, "visual_transformer": 1e-4}
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (rates[name], "constant")
    assert (config.label_smoothing, config.captions_per_photo, config.flip) == (0.0, 1, False)


def test_vocabularies_are_made_as_published() -> None:
    made = {name: load_config(name).vocabulary for name in PUBLISHED}
    found = {name: (v.standardization, v.min_count, v.max_size, v.sentencepiece) for name, v in made.items()}
    assert found == {
        "show_and_tell": ("word_split", 5, None, None),
        "show_attend_tell": ("tutorial_top_k", 1, 5000, None),
        "visual_transformer": ("keras_text_vectorization", 1, 5000, None),
        "bimodal_albert": ("plain_words", 1, None, "albert/albert-base-v2"),  # the words are SentencePiece's
    }


def test_the_bimodal_system_trains_as_published() -> None:
    config = load_config("bimodal_albert")
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.epsilon, optimizer.clipnorm) == (1e-5, 1e-8, 1.0)
    assert (config.batch_size, config.steps_per_epoch) == (8, 250)
    assert (config.keep_every_epochs, config.keep_newest) == (5, 5)
    assert config.family["mask_share"] == 0.15
    embeddings = (30_000 + 512 + 2) * 128 + 2 * 128  # words, positions, segments, and the norm behind them
    assert PUBLISHED["bimodal_albert"]["parts"]["head"] + embeddings == config.published["head_parameters"] == 5_113_312


def test_figures_of_ours_are_of_presets_there_are() -> None:
    assert set(our_figures()) <= set(preset_names())
    assert "ours" not in preset_names()


def test_the_vocabulary_counts_as_published_or_says_what_else_it_is() -> None:
    settings = ("encoder.name=mobilenet_v2", 'family={"name":"lstm"}')
    bare = load_config("default", (*settings, "vocabulary.max_size=null", "published={}"))
    limited = load_config("default", (*settings, "vocabulary.max_size=70", "published={}"))
    assert [(f.vocabulary_size, f.vocabulary_size_is) for f in map(preset_facts, (bare, limited))] == [
        (5000, "assumed"),
        (70, "the preset's limit"),
    ]
    with pytest.raises(ConfigError, match=r"published\.vocabulary_size: found '8k', expected a positive"):
        preset_facts(load_config("default", ('published={"vocabulary_size":"8k"}',)))


def presets(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["presets", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_command_lists_every_preset_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(presets("--json"))["presets"]}
    assert sorted(rows) == preset_names()
    for row in rows.values():
        assert row["decoder"]["total"] >= row["decoder"]["trainable"] > 0
        assert row["encoder_parameters"] > 0
    assert rows["show_and_tell"]["seen_shape"] == [2048]
    assert rows["show_and_tell"]["published"]["val_loss"] == 2.49


def test_the_command_shows_people_the_parts() -> None:
    text = presets("show_attend_tell")
    assert "features    8x8x2048" in text
    assert "gru_attention, 6,602,889 parameters" in text
    assert "1,575,936  gru" in text
    assert "visual_transformer" not in text


def test_an_unknown_preset_is_refused() -> None:
    result = CliRunner().invoke(cli, ["presets", "nowhere"])
    assert result.exit_code == 1
    assert "nowhere: neither a file nor a preset; presets are" in result.stderr
