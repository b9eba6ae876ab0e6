"""The model card, read by huggingface_hub."""

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from sample_results import HOSTILE, RECORD, SEEN, SHA, doubtful, hostile, row, sample

from dgad_tk.common import UserError
from evaluators.report.forms.model_card import card_notes, model_card


def test_the_hub_reads_the_figures() -> None:
    card = ModelCard(model_card([sample()]))
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("onnx", "image-classification", "student")
    assert {"adversarial-robustness", "dgad"} <= set(data.tags)
    found = {each.metric_name: each for each in data.eval_results}
    assert {name: each.metric_value for name, each in found.items()} == {
        "Clean accuracy": 0.712,
        "Robust accuracy, pgd at Linf 8/255": 0.4,
        "Robust accuracy, autoattack at Linf 8/255": 0.384,
        "Robust accuracy, square at Linf 8/255": 0.5,
        "Robust accuracy, worst case at Linf 8/255": 0.384,
    }
    for each in data.eval_results:
        assert (each.task_type, each.dataset_type, each.dataset_split) == ("image-classification", "cifar10", "test")
        assert each.metric_type == "accuracy"
        assert each.dataset_args == {"images": 1000, "sha256": "5a" * 32}
    assert found["Robust accuracy, square at Linf 8/255"].metric_args == {
        "attack": "square",
        "norm": "linf",
        "eps": 8 / 255,
        "images": 300,
        "interval": [0.47, 0.53],
    }


def test_the_hub_writes_what_it_read() -> None:
    """Nothing of the front matter is lost on the way through the hub's own classes."""
    text = model_card([sample()])
    again = ModelCard(str(ModelCard(text)))
    assert again.data.to_dict() == ModelCard(text).data.to_dict()
    assert again.text.strip() == ModelCard(text).text.strip()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_its_place(name: str) -> None:
    text = model_card([hostile(name)])
    card = ModelCard(text)
    front = yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n"))
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert result["dataset"]["name"] == SEEN[name]
    assert result["metrics"][2]["args"]["attack"] == f"transfer:{SEEN[name]}:pgd"
    assert SEEN[name] in front["tags"]
    assert {each.dataset_name for each in card.data.eval_results} == {SEEN[name]}
    assert card.text.lstrip().startswith("# ")
    headings = [token.tag for token in MarkdownIt("commonmark").parse(card.text) if token.type == "heading_open"]
    assert headings == ["h1", *["h2"] * 4]


def test_the_card_says_what_is_known_and_what_is_not() -> None:
    text = model_card([sample()])
    for expected in (
        "Classifies images of 32 by 32 pixels with 3 channels into 2 classes: `cat`, `dog`.",
        "- Method: `dgad`",
        "- Teacher: `resnet20 0123`",
        "- Trained against: `norm linf, eps 8/255, steps 10`",
        "- Epochs: `200`",
        "- Select on: `val`",
        f"- SHA-256 of the model: `{SHA}`",
        "An attack gives an upper bound",
        "Believable: **high**",
    ):
        assert expected in text
    foreign = sample(model={"path": "theirs.onnx", "sha256": SHA, "format": "onnx", "metadata": None})
    assert "Not known: the file carries no record of its training." in model_card([foreign])
    assert "Classifies images into the classes of `cifar10`." in model_card([foreign])
    told = {"shape": (3, 32, 32), "classes": ["cat", "dog"]}
    dataset = sample().dataset.model_copy(update=told)
    assert "32 by 32 pixels with 3 channels into 2 classes: `cat`, `dog`." in model_card(
        [foreign.model_copy(update={"dataset": dataset})]
    )
    many = RECORD | {"classes": [f"class {k}" for k in range(1000)]}
    large = model_card([sample(model={"path": "a.onnx", "sha256": SHA, "format": "onnx", "metadata": many})])
    assert "into 1,000 classes" in large
    assert "`class 19` and 980 more." in large
    (note,) = card_notes([foreign])
    assert "license" in note


def test_values_of_the_record_are_no_python() -> None:
    training = {"nesterov": True, "milestones": [0.5, 0.75], "lr": 0.1, "classes": {"a": 1, "b": None}, "clip": None}
    metadata = RECORD | {"training": training}
    text = model_card([sample(model={"path": "a.onnx", "sha256": SHA, "format": "onnx", "metadata": metadata})])
    for line in ("- Nesterov: `yes`", "- Milestones: `0.5, 0.75`", "- Lr: `0.1`", "- Classes: `a 1, b none`"):
        assert f"\n{line}\n" in text
    assert "- Clip" not in text


def test_figures_in_doubt_say_so_or_stay_out_of_the_index() -> None:
    third = {"accuracy": 1 / 3, "correct": 1, "n": 3, "classes": []}
    warned = ModelCard(model_card([sample(checks=doubtful(), clean=third)]))
    assert {each.metric_args["verdict"] for each in warned.data.eval_results} == {"warn"}
    assert warned.data.eval_results[0].metric_value == 0.3333
    unreliable = sample(checks=doubtful("unreliable"))
    assert "model-index" not in model_card([unreliable])
    assert "not in the card's model-index" in card_notes([unreliable])[-1]
    (only,) = yaml.safe_load(model_card([unreliable, sample()]).split("\n---\n")[0].removeprefix("---\n"))[
        "model-index"
    ]
    assert len(only["results"]) == 1


def test_several_results_of_one_file_are_one_card() -> None:
    other = sample(threat={"norm": "l2", "eps": [0.5]}, attacks=[row("pgd", 500, norm="l2", eps=0.5)], worst_case=[])
    card = ModelCard(model_card([sample(), other]))
    assert card.data.model_name == "student"
    assert "Robust accuracy, pgd at L2 0.5" in [each.metric_name for each in card.data.eval_results]
    strange = sample(model={"path": "b.onnx", "sha256": "0" * 64, "format": "onnx", "metadata": None})
    with pytest.raises(UserError, match="of one model, got 'runs/student.onnx' and 'b.onnx'"):
        model_card([sample(), strange])


def test_a_damaged_record_is_named() -> None:
    damaged = sample(model={"path": "a.onnx", "sha256": SHA, "format": "onnx", "metadata": {"model": "resnet8"}})
    with pytest.raises(UserError, match="model.metadata in results.json is damaged: classes"):
        model_card([damaged])
