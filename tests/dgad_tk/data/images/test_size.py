"""Sizes as people write them, and what configs and records keep of them."""

from typing import Any

import pytest

from dgad_tk.common import UserError
from dgad_tk.config.parsing import parse_yaml, validated
from dgad_tk.config.settings import from_environment, parse_settings
from dgad_tk.config.training import TrainConfig
from dgad_tk.data.images.size import read_written, size_of, written


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("48x192", (48, 192)),
        ("48X192", (48, 192)),
        ("48\u00d7192", (48, 192)),
        (" 48 x 192 ", (48, 192)),
        ("224", (224, 224)),
        (224, (224, 224)),
        (224.0, (224, 224)),
        ("1e2", (100, 100)),
        ((4, 1024), (4, 1024)),
        ([6, 10], (6, 10)),
        ("6x6", (6, 6)),
    ],
)
def test_a_size_has_the_height_first(value: object, size: tuple[int, int]) -> None:
    assert size_of(value) == size
    assert size_of(written(size)) == size


@pytest.mark.parametrize(
    "value",
    ["", "x", "48x", "x48", "48x192x3", "48,192", "wide", "4.5", 4.5, True, None, (1, 2, 3), "-48", "8/2", "010"],
)
def test_what_is_no_size_is_one_line_that_names_the_order(value: object) -> None:
    with pytest.raises(UserError, match="height x width") as error:
        size_of(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["3", "3x48", "48x3", "1025x8", "8x1025", 0, "0x20"])
def test_each_side_has_limits(value: object) -> None:
    with pytest.raises(UserError, match="from 4 to 1024 pixels a side"):
        size_of(value)


def test_a_square_stays_a_number() -> None:
    assert written((32, 32)) == 32
    assert read_written("32x32") == 32
    assert read_written("~") is None


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (parse_settings(["image_size=48x192"]), "48x192"),
        (parse_settings(["image_size=64"]), 64),
        (parse_settings(["image_size=null"]), None),
        (from_environment({"DGAD_IMAGE_SIZE": "48x192"}), "48x192"),
        (parse_yaml("image_size: 64", "a file"), 64),
        (parse_yaml("image_size: 48x192", "a file"), "48x192"),
        (parse_yaml("image_size: '48x192'", "a file"), "48x192"),
        (parse_yaml("image_size: [48, 192]", "a file"), "48x192"),
    ],
)
def test_a_config_reads_and_writes_it(values: dict[str, Any], kept: object) -> None:
    config = validated(TrainConfig, values, "config")
    assert config.image_size == kept
    again = validated(TrainConfig, parse_yaml(config.to_yaml(), "a file"), "config")
    assert again == config


@pytest.mark.parametrize("text", ["image_size: true", "image_size: 48.5", "image_size: wide", "image_size: 2000x8"])
def test_a_config_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="image_size"):
        validated(TrainConfig, parse_yaml(text, "a file"), "config")


def test_older_configs_keep_their_text() -> None:
    """The text of a config names cached surrogates."""
    text = TrainConfig().to_yaml()
    assert "resize" not in text
    assert "channels" not in text
    told = TrainConfig(resize="crop", channels=1).to_yaml()
    assert "resize: crop" in told
    assert "channels: 1" in told


@pytest.mark.parametrize(("key", "value"), [("resize", "crap"), ("channels", "2"), ("channels", "4")])
def test_other_ways_and_channels_are_refused(key: str, value: str) -> None:
    with pytest.raises(UserError) as error:
        validated(TrainConfig, parse_settings([f"{key}={value}"]), "config")
    assert value in error.value.message


@pytest.mark.parametrize("setting", ["image_size=", "image_size=null", "resize=", "channels=", "channels=null"])
def test_a_setting_can_take_the_value_of_a_file_away(setting: str) -> None:
    key = setting.partition("=")[0]
    said = {"image_size": "48x192", "resize": "crop", "channels": 1}
    found = validated(TrainConfig, said | parse_settings([setting]), "config")
    assert {name for name in said if getattr(found, name) is None} == {key}
