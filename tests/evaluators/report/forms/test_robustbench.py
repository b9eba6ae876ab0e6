"""RobustBench's model_info, against the keys and types of an entry there."""

import json
import re

import pytest
from sample_results import HOSTILE, SEEN, SHA, doubtful, hostile, row, sample

from dgad_tk.common import UserError
from evaluators.report.forms.robustbench import robustbench, robustbench_notes

THEIRS = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
    "footnote": str,
    "unreliable": bool,
}
"""Keys in the order of model_info/cifar10/Linf/Bartoldson2024Adversarial_WRN-94-16.json there, and types."""


def test_known_facts_stand_as_theirs_and_unknown_ones_are_null() -> None:
    found = json.loads(robustbench([sample()]))
    assert list(found) == list(THEIRS)
    assert {key: value for key, value in found.items() if value is not None} == {
        "dataset": "cifar10",
        "architecture": "resnet8",
        "eps": "8/255",
        "clean_acc": "71.20",
        "autoattack_acc": "38.40",
        "footnote": "AutoAttack by dgad-tk 0.1.0, steps 10, on 1000 images of cifar10.",
        "unreliable": False,
    }
    for key, value in found.items():
        assert value is None or type(value) is THEIRS[key]
    notes = robustbench_notes([sample()])
    assert "link, name, authors, additional_data, number_forward_passes, venue, reported" in notes[0]
    assert notes[1] == "it belongs in model_info/cifar10/Linf/"
    assert notes[2] == "leaderboards count all 10,000 test images; this is of 1,000 images"


def test_what_the_leaderboards_do_not_have_is_for_ones_own_use() -> None:
    """And of a dataset that is not known, nobody says how many images it has."""

    def notes(**more: object) -> list[str]:
        found = sample()
        return robustbench_notes([found.model_copy(update={"dataset": found.dataset.model_copy(update=more)})])[1:]

    assert notes(name="digits", n=1000) == [
        "RobustBench has no 'digits': for your own use",
        "its figures are of 1,000 images",
    ]
    attack = row("autoattack", 384, norm="l1")
    assert robustbench_notes([sample(attacks=[attack])])[1] == "RobustBench has no leaderboard for l1: for your own use"
    whole = sample(attacks=[row("autoattack", 384, n=10_000)])
    dataset = whole.dataset.model_copy(update={"n": 10_000})
    assert robustbench_notes([whole.model_copy(update={"dataset": dataset})])[1:] == [
        "it belongs in model_info/cifar10/Linf/"
    ]


def test_doubts_are_told() -> None:
    found = sample(checks=doubtful("unreliable"))
    assert json.loads(robustbench([found]))["unreliable"] is True
    warned = sample(checks=doubtful("warn"))
    assert json.loads(robustbench([warned]))["unreliable"] is False
    assert "warn" in robustbench_notes([warned])[-1]


def test_a_file_without_a_record_has_no_architecture() -> None:
    foreign = sample(model={"path": "theirs.onnx", "sha256": SHA, "format": "onnx", "metadata": None})
    assert json.loads(robustbench([foreign]))["architecture"] is None
    assert "architecture" in robustbench_notes([foreign])[0]


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ([row("pgd", 400)], "no AutoAttack over all images"),
        ([row("autoattack", 100, n=300)], "no AutoAttack over all images"),
        ([row("autoattack", None, status="failed")], "no AutoAttack over all images"),
        ([row("transfer:a:autoattack", 10, name="autoattack", surrogate="a")], "no AutoAttack over all images"),
        ([row("autoattack-fast", 380, autoattack="near")], "no AutoAttack .*; autoattack-fast is another attack"),
        ([row("autoattack-max", 380, autoattack="whole")], "no AutoAttack .*; autoattack-max is another attack"),
        ([row("autoattack@4/255", 500, name="autoattack", eps=4 / 255), row("autoattack", 9)], "4/255, 8/255"),
    ],
)
def test_what_cannot_be_ranked_is_refused(attacks: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        robustbench([sample(attacks=attacks)])
    assert caught.value.hint
    with pytest.raises(UserError, match="of one model, got 2"):
        robustbench([sample(), sample()])


@pytest.mark.parametrize("name", HOSTILE)
def test_the_footnote_is_html_without_tags(name: str) -> None:
    found = json.loads(robustbench([hostile(name)]))
    assert found["dataset"] == SEEN[name]
    assert not re.search(r"[<>\"']", found["footnote"])
