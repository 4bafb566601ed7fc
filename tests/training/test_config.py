"""Presets: read strictly, changed by --set, refused by path."""

import json
from pathlib import Path

import pytest

from captionlite.training.config import RunConfig, from_json, load_config, preset_names
from captionlite.training.errors import ConfigError


def test_every_preset_in_the_package_loads_and_survives_a_round_trip() -> None:
    assert "default" in preset_names()
    for name in preset_names():
        config = load_config(name)
        assert config.name == name
        assert from_json(RunConfig, json.loads(json.dumps(config.to_json())), name) == config


def test_settings_change_what_they_name() -> None:
    config = load_config("default", ("epochs=3", "optimizer.learning_rate=2e-3", "family.units=64", "flip=false"))
    assert (config.epochs, config.optimizer.learning_rate, config.family["units"], config.flip) == (3, 2e-3, 64, False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=many", r"default\.epochs: found 'many', expected int"),
        ("epochs=true", r"default\.epochs: found True, expected int"),
        ("optimizer.rate=1", r"default\.optimizer\.rate: no such setting; there are learning_rate"),
        ("draw=twice", r"default\.draw: found 'twice', expected one of 'every_caption', 'random_caption'"),
        ("epochs", "--set epochs: expected KEY=VALUE"),
        ("epochs.first=1", "--set epochs.first=1: epochs is not an object"),
        ("data=[3]", r"default\.data\[0\]: found int, expected an object"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("default", (setting,))


def test_a_file_that_is_no_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a file nor a preset; presets are .*default"):
        load_config(str(tmp_path / "nowhere.json"))
    broken = tmp_path / "broken.json"
    broken.write_text('{"name": ')
    with pytest.raises(ConfigError, match=r"broken\.json: not JSON"):
        load_config(str(broken))
    broken.write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match=r"broken\.json\.family: missing"):
        load_config(str(broken))
