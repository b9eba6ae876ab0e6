"""The page of a training run: what it says, what it leaves out, and that nothing on it is a stranger's markup."""

import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import interrupted, quick
from safetensors.torch import save_file

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import read_weights, save_record
from dgad_tk.common import UserError
from dgad_tk.config.parsing import written_yaml
from dgad_tk.config.recipe import load_recipe, recipe_names
from dgad_tk.config.settings import parse_settings
from dgad_tk.config.training import TrainConfig
from dgad_tk.methods import build_method
from dgad_tk.training.train import train
from evaluators.report.runs.defaults import command, differences
from evaluators.report.runs.record import read_run
from evaluators.report.training import write_run_page

HOSTILE = "<img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "path", "circle", "rect"}


class Page(HTMLParser):
    """The tags, attributes and text of a page. Fails on tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag, tag
        if tag in ("td", "th"):
            self.texts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def headings(self, *levels: str) -> list[str]:
        found = re.findall(r"<(h\d)[^>]*>(.*?)</\1>", self.source, flags=re.DOTALL)
        return [" ".join(re.sub("<[^>]*>", "", text).split()) for level, text in found if level in levels]

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


def page_of(folder: RunFolder) -> Page:
    """The page, seen to be complete in itself and to run nothing."""
    page = Page(write_run_page(folder))
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "form", "base", "embed"), tag
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("data:", "#")), attributes
        if tag in ("img", "svg") and attributes.get("aria-hidden") != "true":
            assert attributes.get("alt") or attributes.get("aria-label"), attributes
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links <= page.ids()
    assert "http" not in page.source.replace("http-equiv", "")
    return page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three epochs of DGAD, and its own teacher."""
    return train(quick(), out=tmp_path_factory.mktemp("made") / "r")


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, to be changed."""
    return RunFolder(Path(shutil.copytree(made.path, tmp_path / "r")))


def change_config(folder: RunFolder, **values: Any) -> None:
    folder.config.write_text(written_yaml(folder.read_config().model_dump(mode="json") | values), encoding="utf-8")


def change_record(folder: RunFolder, **values: Any) -> None:
    save_record(folder.best, read_weights(folder.best)[1].model_copy(update=values))


def write_metrics(folder: RunFolder, *lines: str) -> None:
    folder.metrics.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_it_says_what_the_metrics_say(run: RunFolder) -> None:
    page = page_of(run)
    *epochs, end = run.records()
    best = epochs[end["best_epoch"]]
    robust = f"{100 * best['val_robust']:.1f} %"
    n = read_weights(run.best)[1].training["selection_images"]
    title = f"{robust} right under attack in the best epoch ({best['epoch'] + 1}), on {n} validation images"
    assert page.headings("h1") == [title]
    assert "Linf 0.15, 2 steps" in page.text
    assert "prediction consistency: how far the student's answers" in page.text
    for term in ("loss", "l_st", "l_at", "pcr"):
        assert term in page.headings("h3")
        assert f"{epochs[0][term]:.4g} in epoch 1" in page.text
        assert f"{epochs[-1][term]:.4g} in epoch 3" in page.text
    assert f"wrong on {100 * epochs[-1]['teacher_wrong']:.1f} %" in page.text
    assert "3 of 3" in page.text
    assert "has not ended" not in page.text
    assert page.ids() >= {"accuracy", "losses", "shares", "pace", "images", "settings", "teacher", "versions"}
    assert "paper" not in page.ids()
    assert torch.__version__.split("+")[0] in page.text
    *_, teacher_end = run.teacher.records()
    assert f"in the best epoch ({teacher_end['best_epoch'] + 1}), on " in " ".join(page.headings("h2"))
    with np.load(run.images) as images, np.load(run.teacher.images) as taught:
        assert sum(tag == "img" for tag, _ in page.tags) == 3 * (len(images["label"]) + len(taught["label"]))
        right = int((images["adv_pred"] == images["label"]).sum())
    assert f"{right} of 8 right after the attack" in page.text
    assert run.report.stat().st_size < 150_000


def test_the_best_epoch_is_marked_in_every_chart_of_a_metric(run: RunFolder) -> None:
    page, best = page_of(run), read_run(run).best
    charts = 1 + 1 + 4 + 1  # validation, training, loss and its terms, the teacher's errors
    assert page.source.count(f">best: epoch {best}</text>") >= charts
    assert page.text.count(", the best") >= charts


@pytest.mark.parametrize("place", ["folder", "images", "class", "term", "paper", "versions", "teacher"])
def test_names_of_strangers_are_text(run: RunFolder, place: str, tmp_path: Path) -> None:
    if place == "folder":
        run = RunFolder(run.path.rename(tmp_path / HOSTILE))
    elif place == "images":
        change_config(run, data_dir=HOSTILE, dataset="imagefolder")
    elif place == "class":
        change_record(run, classes=[f"{HOSTILE}{digit}" for digit in range(10)])
    elif place == "term":
        write_metrics(run, json.dumps(run.records()[0] | {HOSTILE: 1.5, "\x1b[31m\u2028": 2.0}))
    elif place == "paper":
        change_config(run, paper={"figures": {"clean": 50}, "table": HOSTILE, "row": HOSTILE, "source": HOSTILE})
    elif place == "versions":
        change_record(run, versions={HOSTILE: HOSTILE})
    else:
        change_record(run, teacher=f"{HOSTILE} {'0' * 64}")
    page = page_of(run)
    assert HOSTILE in page.text
    assert all(attributes["src"].startswith("data:image/png;") for tag, attributes in page.tags if tag == "img")
    assert "\x1b" not in page.source


def test_a_run_that_goes_on(run: RunFolder) -> None:
    write_metrics(run, *map(json.dumps, run.records()[:1]))
    page = page_of(run)
    assert "This run has not ended: 1 of 3 epochs done" in page.text
    run.metrics.unlink()
    run.best.unlink()
    run.images.unlink()
    page = page_of(run)
    assert page.headings("h1") == ["No epoch has ended yet"]
    assert "0 of 3 epochs done" in page.text
    assert not page.ids() & {"accuracy", "losses", "images"}
    assert "teacher" in page.ids()
    for path in (run.teacher.metrics, run.teacher.best):
        path.unlink()
    assert "No epoch has ended yet" in " ".join(page_of(run).headings("h2"))


def test_an_interrupted_run_and_the_same_one_resumed(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "r", quick(method="trades"))
    before = page_of(folder)
    assert "1 of 3 epochs done" in before.text
    train(quick(method="trades"), out=folder.path, resume=True)
    after = page_of(folder)
    assert "has not ended" not in after.text
    assert "teacher" not in after.ids()


def test_a_run_of_an_older_version(run: RunFolder) -> None:
    """Without images, shares or the figures that later versions added."""
    run.images.unlink()
    kept = ("event", "epoch", "loss", "val_clean", "val_robust")
    write_metrics(run, *(json.dumps({key: line[key] for key in kept if key in line}) for line in run.records()))
    training = {key: value for key, value in read_weights(run.best)[1].training.items() if key == "best_epoch"}
    change_record(run, training=training, versions={})
    page = page_of(run)
    assert page.ids() >= {"accuracy", "losses", "settings"}
    assert not page.ids() & {"images", "shares", "pace"}


def test_what_is_damaged_is_left_out_and_said(run: RunFolder) -> None:
    lines = [json.dumps(line) for line in run.records()]
    torn = ['{"event": "epo', "[1]", '{"event": "epoch"}', '{"event": "epoch", "epoch": -1}', "9" * 5000, "[" * 10**5]
    torn += [f'{{"event": "epoch", "epoch": {number}}}' for number in ("1e99", "true", "9999999")]
    odd = json.dumps(json.loads(lines[1]) | {"pcr": "much", "l_st": None, "l_at": [1], "more": 10**400})
    write_metrics(run, lines[0], *torn, odd, *lines[2:], "")
    run.images.write_bytes(b"PK")
    page = page_of(run)
    assert f"{len(torn)} damaged lines of metrics.jsonl left out" in page.text
    assert "images.npz left out: cannot read" in page.text
    assert "3 of 3" in page.text
    assert "has not ended" not in page.text
    run.best.write_bytes(run.best.read_bytes()[:50])
    page = page_of(run)
    assert "best.safetensors cannot be read" in page.text
    assert "in the best epoch (" in page.text  # by the metrics
    run.config.write_text("epochs: [\n")
    with pytest.raises(UserError, match="config"):
        write_run_page(run)
    with pytest.raises(UserError, match="no run folder"):
        write_run_page(RunFolder(run.path / "nothing"))


def test_a_loss_that_is_not_finite(run: RunFolder) -> None:
    first, second, *_ = run.records()
    write_metrics(run, json.dumps(first), json.dumps(second | {"pcr": math.nan, "l_st": math.inf}))
    about = {"epoch": 2, "terms": {"l_at": math.nan, "pcr": 0.25}}
    save_file({"x": torch.zeros(1)}, run.non_finite, metadata={"about": json.dumps(about)})
    page = page_of(run)
    assert "The run stopped in epoch 3: the loss was NaN or infinite (l_at nan, pcr 0.25)" in page.text
    assert "In 1 epoch it was not finite." in page.text
    assert "nan" not in " ".join(attributes.get("points", "") for _, attributes in page.tags)
    run.non_finite.write_bytes(b"torn")
    assert "The run stopped in a step" in page_of(run).text
    write_metrics(run, *(json.dumps(first | {"epoch": epoch}) for epoch in range(3)))
    save_file({"x": torch.zeros(1)}, run.non_finite, metadata={"about": json.dumps(about)})
    assert "The run stopped" not in page_of(run).text  # it went on since


def test_long_runs_stay_small_and_readable(run: RunFolder) -> None:
    change_config(run, epochs=5000)
    first, end = run.records()[0], run.records()[-1]
    terms = {f"term{number}": 0.1 for number in range(6)}
    lines = [first | terms | {"epoch": epoch, "loss": 2.0 + math.sin(epoch)} for epoch in range(5000)]
    write_metrics(run, *map(json.dumps, lines), json.dumps(end | {"epochs": 5000, "epoch": 5000}))
    page = page_of(run)
    paths = [attributes for tag, attributes in page.tags if tag == "path"]
    drawn = [
        each["d"].split("L") for each in paths if "line" in (each.get("class") or "").split() and "H" not in each["d"]
    ]
    assert len(drawn) > 10
    assert 300 <= max(map(len, drawn)) <= 402
    assert run.report.stat().st_size < 300_000
    assert {f"term{number}" for number in range(6)} <= set(page.headings("h3"))


def test_a_method_that_attacks_nothing_is_judged_by_clean_accuracy(tmp_path: Path) -> None:
    page = page_of(train(quick(method="standard", epochs=1, select_on="test"), out=tmp_path / "r"))
    assert re.fullmatch(r"[0-9.]+ % right in the best epoch \(1\), on [0-9,]+ test images", page.headings("h1")[0])
    assert "attacks no images" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 8
    assert "chosen on the test images" in page.text


def test_a_run_that_ended_early_says_why(run: RunFolder) -> None:
    change_config(run, epochs=9, early_stop=2)
    assert "ended after 3 of 9 epochs: no better epoch within 2" in page_of(run).text
    change_config(run, epochs=9, early_stop=None, max_seconds=1.0)
    assert "its time of 1.0 s was up" in page_of(run).text


def test_the_paper_stands_beside_the_run(run: RunFolder) -> None:
    recipe = load_recipe("paper/table4/rn18-wrn34-10-dgad")
    change_config(run, paper=recipe.paper)
    page = page_of(run)
    assert "87.58 %" in page.text
    assert "50.59 %" in page.text
    assert "paper/table4/rn18-wrn34-10-dgad" in page.text
    assert "test set, Table 4, second hand" in page.text
    assert "AA 50.59 % not measured in training" in page.text
    change_config(run, paper={"figures": {"aa": "much"}})
    assert "paper" not in page_of(run).ids()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"epochs": 3, "threat": {"steps": 1, "eps": "8/255"}}, ["threat.eps=8/255", "threat.steps=1", "epochs=3"]),
        ({"dataset": "cifar10", "threat": {"norm": "l2"}}, ["threat.norm=l2"]),
        ({"threat": {"eps": 0.1, "step_size": 0.007}}, ["threat.eps=0.1", "threat.step_size=0.007"]),
        ({"epochs": 25}, ["teacher_epochs=25"]),  # whoever sets the epochs sets the teacher's
        ({"lr": 0.3, "teacher_options": {"beta": 6.0}}, ["teacher_options.beta=6.0", "lr=0.3"]),
        ({"method": "trades", "method_options": {"beta": 3.0}}, ["trades.beta=3.0"]),
        ({"method_options": {"pcr_weight": 5.0, "dgad.map": False}}, ["dgad.map=false"]),
        ({"method": "adaad+igdm", "method_options": {"igdm.weight": 10.0}}, ["igdm.weight=10.0"]),
        ({"milestones": (0.1, 0.2), "nesterov": True}, ["nesterov=true", "milestones=0.1,0.2"]),
        ({"checkpoint_minutes": None}, ["checkpoint_minutes=null"]),
        (
            {"dataset": "imagefolder", "data_dir": f"{HOSTILE} 'a b'", "method": "standard"},
            [f"data_dir={HOSTILE} 'a b'"],
        ),
        ({"teacher": "t.pt", "teacher_model": "vgg16", "teacher_mean": (0.5,), "teacher_std": (0.25,)},
         ["teacher=t.pt", "teacher_model=vgg16", "teacher_mean=0.5", "teacher_std=0.25"]),
    ],
)  # fmt: skip
def test_the_settings_that_are_not_the_defaults(values: dict[str, Any], expected: list[str]) -> None:
    config = TrainConfig.model_validate(values).resolved()
    assert [f"{each.key}={each.value}" for each in differences(config)] == expected


@pytest.mark.parametrize("name", [*recipe_names()[::6], "default"])
def test_the_command_makes_the_same_settings(name: str) -> None:
    """Read back as `dgad train` reads it."""
    recipe = load_recipe(name)
    config = TrainConfig.model_validate(recipe.values).resolved()
    words = shlex.split(command(config, differences(config)).replace("\\\n", ""))
    assert words[:2] == ["dgad", "train"]
    flags = list(zip(words[2::2], words[3::2], strict=True))
    assert flags[:2] == [("--dataset", config.dataset), ("--method", config.method)]
    settings = parse_settings([value for flag, value in flags[2:] if flag == "--set"])
    again = TrainConfig.model_validate({"dataset": config.dataset, "method": config.method} | settings).resolved()
    without = {"method_options"}
    assert config.model_dump(exclude=without) == again.model_dump(exclude=without)
    assert build_method(config.method, config.method_options) == build_method(again.method, again.method_options)


def test_weights_that_are_ahead_of_the_metrics(run: RunFolder) -> None:
    """Of a process that was killed between the two."""
    change_record(run, training=read_weights(run.best)[1].training | {"best_epoch": 3})
    write_metrics(run, *map(json.dumps, run.records()[:2]))
    assert read_run(run).best in (1, 2)
    assert page_of(run).headings("h1")[0].count("right under attack in the best epoch (") == 1
