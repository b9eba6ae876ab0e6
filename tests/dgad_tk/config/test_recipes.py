"""Recipes: every one builds, `paper/` does as the released code, `fair/` is one setting; files extend each other."""

from pathlib import Path
from typing import Any

import pytest

from dgad_tk.common import UserError
from dgad_tk.config.parsing import validated
from dgad_tk.config.recipe import (
    RECIPES,
    Recipe,
    load_recipe,
    printed_figures,
    printed_place,
    recipe_names,
)
from dgad_tk.config.training import TrainConfig
from dgad_tk.methods import Method, build_method
from dgad_tk.methods.base import AddOn
from dgad_tk.models import find_model

NAMES = recipe_names()
RUN = [name for name in NAMES if name.startswith(("fair/", "paper/"))]
BEST = [name for name in NAMES if name.startswith("best/")]


def config_of(name: str) -> TrainConfig:
    return validated(TrainConfig, load_recipe(name).values, name).resolved()


def method_of(config: TrainConfig) -> Method:
    return build_method(config.method, config.method_options)


def test_the_list_is_whole() -> None:
    bases = list(RECIPES.glob("*/_base/*.yaml"))
    assert len(bases) == 6
    assert len(NAMES) + len(bases) == len(list(RECIPES.rglob("*.yaml")))
    assert not any("_base" in name for name in NAMES)
    assert {name.split("/")[0] for name in NAMES} == {"best", "default", "fair", "paper"}
    tables = {name.split("/")[1] for name in NAMES if name.startswith("paper/")}
    assert tables == {"figure2", *(f"table{number}" for number in range(1, 9))}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_can_be_run(name: str) -> None:
    config = config_of(name)
    method = method_of(config)
    find_model(config.student)
    if method.needs_teacher:
        find_model(config.teacher_model)
        assert "teacher_model" in load_recipe(name).values
    assert config.resolved() == config


@pytest.mark.parametrize("name", RUN)
def test_what_the_paper_prints(name: str) -> None:
    """Figures are percentages with a source, the place agrees with the folder, and a teacher can be had."""
    recipe = load_recipe(name)
    paper = recipe.paper
    assert paper.keys() <= {"recipe", "table", "row", "figures", "source", "reading", "teacher_file"}
    assert paper["recipe"] == name
    where = paper["table"] if isinstance(paper["table"], str) else f"table {paper['table']}"
    assert name.split("/")[1] == where.replace(" ", "")
    assert paper["row"]
    assert ("figures" in paper) == ("source" in paper)
    for figure, value in paper.get("figures", {}).items():
        assert figure in ("clean", "fgsm", "pgd", "cw", "aa")
        assert isinstance(value, float)
        assert 0 < value < 100
    if name.startswith("fair/"):
        assert "figures" not in paper  # the paper printed another run's
    needs_teacher = method_of(config_of(name)).needs_teacher
    assert ("teacher_file" in paper) == needs_teacher
    if "--config" in paper.get("teacher_file", ""):
        source = paper["teacher_file"].split("--config ")[1].split(",")[0]
        assert source.split("/")[0] == name.split("/")[0]
        teacher = config_of(source)
        assert teacher.student == config_of(name).teacher_model
        assert teacher.dataset == config_of(name).dataset


def test_attacks_leave_clean_accuracy_and_autoattack_the_least() -> None:
    """In any row that is known as far as that, which a swapped pair of figures would not be."""
    order = ("clean", "fgsm", "pgd", "aa")
    rows = [load_recipe(name).paper.get("figures", {}) for name in RUN]
    for row in rows:
        found = [row[figure] for figure in order if figure in row]
        assert found == sorted(found, reverse=True)
    assert sum(len(row) > 1 for row in rows) > 5


SCHEDULE = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "nesterov", "schedule", "milestones", "averaging")
TEACHER = "fair/table1/cifar10-wrn34-10-pgd-at"
"""Trained as the paper's; everything else of the fair comparison is trained alike."""


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("fair/")])
def test_the_fair_comparison_is_fair(name: str) -> None:
    config, like = config_of(name), config_of("fair/table4/rn18-pgd-at")
    assert config.select_on == "val"
    assert config.normalize == "none"
    method = method_of(config)
    assert getattr(method, "kl_reduction", "batchmean") == "batchmean"
    assert getattr(method, "scale", 1) == 1
    assert getattr(method, "divisor", "n") == "n"
    assert getattr(method, "mobilenet_loss", "plain") == "plain"
    if name == TEACHER:
        assert (config.epochs, config.milestones, config.attack.eps) == (110, (100, 105), 0.031)
        return
    assert config.attack == like.attack
    for key in SCHEDULE:
        assert getattr(config, key) == getattr(like, key), key


@pytest.mark.parametrize("name", BEST)
def test_the_best_recipes_change_the_fair_ones_where_they_say(name: str) -> None:
    """They ask a cheaper teacher in the attack; their schedule, images and teachers are those of the comparison."""
    method, config, recipe = method_of(config_of(name)), config_of(name), load_recipe(name)
    base: Any = method.base if isinstance(method, AddOn) else method
    assert base.teacher_in_attack == ("none" if name.endswith("igdm") else "linear")
    if "cifar" not in name:
        assert not recipe.paper
        return
    assert "figures" not in recipe.paper
    assert recipe.paper["recipe"] == name
    assert recipe.paper["teacher_file"]
    assert f"-{ {'resnet18': 'rn18', 'mobilenetv2': 'mnv2'}[config.student] }-" in name
    assert f"/{config.dataset}-" in name
    like = config_of("fair/table4/rn18-pgd-at")
    assert config.attack == like.attack
    for key in SCHEDULE:
        assert getattr(config, key) == ("swa" if key == "averaging" else getattr(like, key)), key
    if name.endswith("igdm"):
        assert isinstance(method, AddOn)
        assert method.weight == (10 if config.dataset == "cifar100" else 1)  # type: ignore[attr-defined]


def of(pattern: str) -> list[tuple[TrainConfig, Any]]:
    found = [path.relative_to(RECIPES).with_suffix("").as_posix() for path in sorted(RECIPES.glob(pattern))]
    assert found
    return [(config, method_of(config)) for config in map(config_of, found)]


def test_the_papers_rows_do_what_the_released_code_did() -> None:
    assert all(config.select_on == "test" for config, _ in of("paper/*/[!_]*.yaml"))
    assert all(method.kl_reduction == "elementmean" for _, method in of("paper/table4/*adaad.yaml"))
    assert all(method.kl_reduction == "batchmean" for _, method in of("paper/table5/*adaad.yaml"))
    assert all(method.mobilenet_loss == "released" for _, method in of("paper/table[45]/mnv2*dgad.yaml"))
    assert all(method.mobilenet_loss == "plain" for _, method in of("paper/*/rn18*dgad.yaml"))
    assert all(method.divisor == "bs" for _, method in of("paper/*/*-dgad.yaml"))
    for student, weight in (("rn18", 5), ("mnv2", 10), ("prn18", 15)):
        for root in ("paper", "fair"):
            assert all(method.pcr_weight == weight for _, method in of(f"{root}/*/{student}*-dgad.yaml"))


def test_the_ablations_differ_in_what_they_are_called() -> None:
    def parts(name: str) -> tuple[bool, bool, bool]:
        _, method = of(f"paper/table2/{name}.yaml")[0]
        return method.els_clean, method.els_adv, method.pcr_weight > 0

    assert parts("map") == (False, False, False)
    assert parts("map-elsx") == (True, False, False)
    assert parts("map-elsxadv") == (False, True, False)
    assert parts("map-elsx-elsxadv") == (True, True, False)
    assert parts("map-pcr") == (False, False, True)
    assert parts("full") == (True, True, True)
    assert [method.label_mode for _, method in of("paper/table3/*.yaml")] == ["mix", "smooth", "swap"]
    assert [method.alpha for _, method in of("paper/figure2/*.yaml")] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_summaries() -> None:
    recipe = load_recipe("paper/table4/rn18-wrn34-10-dgad")
    assert recipe.summary == "dgad resnet18 <- wrn-34-10 on cifar10; paper: clean 87.58, AA 50.59"
    assert load_recipe("fair/table4/rn18-trades").summary == "trades resnet18 on cifar10"
    assert printed_place(recipe.paper) == "test set, Table 4, second hand"
    assert printed_place({"table": "figure 2"}) == "test set, Figure 2"
    assert printed_figures({}) == printed_figures({"figures": None}) == printed_figures({"figures": {"aa": "?"}}) == ""
    assert Recipe({}, {}).summary == "dgad resnet8 on digits"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings merge, own keys win, files are found beside the file that names them, recipes anywhere."""
    write(tmp_path / "a" / "base.yaml", "extends: paper/table4/rn18-wrn34-10-dgad\nepochs: 3\nthreat: {steps: 2}\n")
    mine = write(
        tmp_path / "mine.yaml",
        "extends: a/base.yaml\nmethod_options: {map: false}\nlr: 0.3\npaper: {row: mine}\n",
    )
    recipe = load_recipe(str(mine))
    config = validated(TrainConfig, recipe.values, "mine").resolved()
    assert (config.epochs, config.lr, config.dataset, config.select_on) == (3, 0.3, "cifar10", "test")
    assert (config.attack.steps, config.attack.eps) == (2, 8 / 255)
    assert config.method_options == {"pcr_weight": 5, "divisor": "bs", "map": False}
    assert (recipe.paper["row"], recipe.paper["table"]) == ("mine", 4)
    monkeypatch.chdir(tmp_path / "a")
    assert load_recipe("../mine.yaml").values == recipe.values
    assert load_recipe("base.yaml").values["epochs"] == 3
    write(tmp_path / "a" / "default", "epochs: 9\n")
    assert load_recipe("default").values == {"epochs": 9}  # a file of one's own is not hidden by a recipe
    write(tmp_path / "a" / "plain.yaml", "extends: base.yaml\npaper:\n")
    assert load_recipe("plain.yaml").paper == {}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: a.yaml\n"}, "extends itself: a -> a"),
        ({"a": "extends: b.yaml\n", "b": "extends: a.yaml\n"}, "extends itself: a -> b -> a"),
        ({"a": "extends: papre/table4/rn18-trades\n"}, "extends an unknown recipe .*did you mean 'paper/table4/rn18-"),
        ({"a": "extends: zzz\n"}, "extends an unknown recipe 'zzz' .`dgad list recipes`"),
        ({"a": "extends: b.yaml\n"}, "cannot read config .*b.yaml"),
        ({"a": "extends: [b.yaml]\n"}, "extends must name one recipe or file"),
        ({"a": "extends: b.yaml\n", "b": "- 1\n"}, "must hold keys and values"),
        ({"a": "paper: yes\n"}, "paper must hold keys and values"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        write(tmp_path / f"{name}.yaml", text)
    with pytest.raises(UserError, match=message):
        load_recipe(str(tmp_path / "a.yaml"))


def test_unknown_recipes() -> None:
    with pytest.raises(
        UserError, match="unknown recipe 'paper/table4/rn18-trade' .did you mean 'paper/table4/rn18-tra"
    ):
        load_recipe("paper/table4/rn18-trade")
    with pytest.raises(UserError, match="cannot read config 'missing.yaml'"):
        load_recipe("missing.yaml")


def test_what_the_paper_prints_changes_nothing(tmp_path: Path) -> None:
    recipe = load_recipe("paper/table4/rn18-wrn34-10-dgad")
    plain = validated(TrainConfig, recipe.values, "x").resolved()
    noted = plain.model_copy(update={"paper": recipe.paper})
    assert noted.differences(plain) == []
    noted.save(tmp_path / "config.yaml")
    again = load_recipe(str(tmp_path / "config.yaml"))
    assert again.paper == recipe.paper
    assert validated(TrainConfig, again.values, "x") == plain
    assert noted.for_teacher().paper == {}
