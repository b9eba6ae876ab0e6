"""Configs: precedence, unknown keys, fractions as people write them, files that read back."""

from pathlib import Path
from typing import Any

import pytest

from dgad_tk.common import UserError, lookup, written_aside
from dgad_tk.config.parsing import read_yaml, validated
from dgad_tk.config.settings import from_environment, parse_settings
from dgad_tk.config.threat import ThreatModel
from dgad_tk.config.training import TrainConfig
from dgad_tk.strangers.number_text import format_fraction, parse_fraction


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.15", 0.15), (" 2/255 ", 2 / 255), ("0", 0), (0.5, 0.5)]
)
def test_fractions(text: str, value: float) -> None:
    assert parse_fraction(text) == value


@pytest.mark.parametrize("text", ["abc", "8/0", "8", "-0.1", "nan", "", "1/2/3", "inf", None])
def test_bad_fractions(text: Any) -> None:
    with pytest.raises(UserError, match="eps must be"):
        parse_fraction(text)


@pytest.mark.parametrize(
    ("value", "text"), [(8 / 255, "8/255"), (0.15, "0.15"), (0.5, "0.5"), (2 / 255, "2/255"), (0.03, "0.03"), (1, "1")]
)
def test_fractions_are_printed_as_written(value: float, text: str) -> None:
    assert format_fraction(value) == text


def test_lookup_names_the_nearest_or_all() -> None:
    table = {"rslad": 1, "ard": 2}
    assert lookup(table, "ard", "method") == 2
    with pytest.raises(UserError, match="unknown method 'rsald' .did you mean 'rslad'"):
        lookup(table, "rsald", "method")
    with pytest.raises(UserError, match="expected one of ard, rslad"):
        lookup(table, "xyz", "method")


def test_a_config_reads_back(tmp_path: Path) -> None:
    config = TrainConfig(
        method_options={"pcr_weight": 3.0},
        threat=ThreatModel.of("linf", 8 / 255),
        data_dir=tmp_path,
        milestones=(0.4, 0.9),
    ).resolved()
    config.save(tmp_path / "config.yaml")
    again = validated(TrainConfig, read_yaml(tmp_path / "config.yaml"), "file")
    assert again == config
    assert config.differences(again) == []
    assert config.differences(again.model_copy(update={"seed": 4})) == ["seed: 0, not 4"]


def test_datasets_fill_in_what_nobody_set() -> None:
    digits, folder = TrainConfig().resolved(), TrainConfig(dataset="imagefolder").resolved()
    assert (digits.epochs, digits.batch_size, digits.attack.eps) == (25, 64, 0.15)
    assert (folder.epochs, folder.batch_size, folder.attack.eps) == (200, 128, 8 / 255)
    assert folder.attack.step_size == 2 / 255
    assert TrainConfig(epochs=3).resolved().epochs == 3
    assert TrainConfig(epochs=3).resolved().for_teacher().epochs == 3
    assert digits.resolved() == digits
    assert (digits.for_teacher().epochs, digits.for_teacher().lr) == (20, 0.1)
    assert digits.for_teacher().method_options == {"beta": 2.0}
    assert TrainConfig(teacher_method="pgd-at").resolved().for_teacher().method_options == {}
    assert TrainConfig(lr=0.3).resolved().for_teacher().lr == 0.3
    assert folder.for_teacher().lr == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch' .did you mean 'epochs'"),
        ({"threat": {"eps": 0.1, "step_size": 0.1, "stepz": 1}}, "unknown key 'threat.stepz' .did you mean 'steps'"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1, got 0"),
        ({"threat": {"eps": "abc", "step_size": 0.1}}, "eps must be a fraction"),
        ({"precision": "fp8"}, "precision"),
        ({"milestones": [0.9, 0.1]}, "milestones must ascend"),
        ({"nesterov": True, "momentum": 0}, "nesterov needs a momentum"),
        ({"lr": float("inf")}, "lr"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validated(TrainConfig, values, "config")


def test_a_threat_may_be_given_in_part() -> None:
    """What is left open is the dataset's, and the step follows the radius."""
    steps = validated(TrainConfig, {"threat": {"steps": 7}}, "x").attack
    assert (steps.eps, steps.step_size, steps.steps) == (0.15, 0.0375, 7)
    colour = validated(TrainConfig, {"dataset": "imagefolder", "threat": {"norm": "l2"}}, "x").attack
    assert (colour.norm, colour.eps, colour.step_size) == ("l2", 0.5, 0.125)
    assert validated(TrainConfig, {"threat": {"eps": "8/255"}}, "x").attack.step_size == 2 / 255
    assert ThreatModel.of("l2", 2.0).eps == 2.0
    with pytest.raises(UserError, match="between 0 and 1, got '2"):
        validated(TrainConfig, {"threat": {"eps": 2.0}}, "x")


def test_settings() -> None:
    assert parse_settings(["lr=0.05", "threat.eps=8/255", "dgad.pcr_weight=10", "dgad.map=false"]) == {
        "lr": 0.05,
        "threat": {"eps": "8/255"},
        "method_options": {"dgad.pcr_weight": "10", "dgad.map": "false"},  # read when the method is known
    }
    assert parse_settings(["lr=1e-1"]) == {"lr": 0.1}
    with pytest.raises(UserError, match="needs key=value, got 'lr'"):
        parse_settings(["lr"])
    with pytest.raises(UserError, match="was set to"):
        parse_settings(["lr=0.1", "lr.x=1"])
    with pytest.raises(UserError, match="--set method_options must hold keys and values, got int"):
        parse_settings(["method_options=5", "dgad.map=false"])


def test_environment() -> None:
    assert from_environment({"DGAD_EPOCHS": "5", "DGAD_CACHE": "/x", "HOME": "/"}) == {"epochs": 5}
    with pytest.raises(UserError, match="DGAD_EPOCHSS names no key .did you mean 'epochs'"):
        from_environment({"DGAD_EPOCHSS": "5"})


@pytest.mark.parametrize(
    ("content", "message"), [("- a\n", "keys and values"), ("a: [", "not YAML"), (None, "cannot read")]
)
def test_bad_config_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_yaml(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
