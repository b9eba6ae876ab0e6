"""The README is run, and its tables are what the code says."""

import re
from pathlib import Path

import pytest
from shared import ROOT

from dgad_tk.config.recipe import recipe_names
from dgad_tk.data import DATASETS
from dgad_tk.methods import ADDONS, METHODS
from dgad_tk.models import MODELS
from evaluators.attacks import ATTACKS
from evaluators.plan.suites import SUITES
from exporters.formats import EXPORTERS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, with a shorter training and fewer images: what is hardly trained is slow to break."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    code = (
        "\n".join(blocks)
        .replace('student="resnet8")', 'student="resnet8", teacher_model="resnet8", epochs=1, limit_train=128)')
        .replace(".subset(32)", ".subset(4)")
    )
    assert "limit_train" in code
    assert "subset(4)" in code
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"clean \d+\.\d%, worst case \d+\.\d%", printed)
    assert re.search(r"ProjectedGradientDescent: \d+\.\d% robust\nAutoAttack: \d+\.\d% robust", printed)
    assert names["adversarial"].shape == (4, 1, 8, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("row", "table"),
    [
        ("methods", METHODS),
        ("add-ons", ADDONS),
        ("students, teachers", MODELS),
        ("datasets", DATASETS),
        ("formats", EXPORTERS),
        ("attacks", ATTACKS),
        ("suites", SUITES),
    ],
)
def test_tables_are_the_codes(row: str, table: dict[str, object]) -> None:
    (line,) = re.findall(rf"^\| {row} \| (.*) \|$", README, flags=re.MULTILINE)
    assert re.findall(r"`([^`]+)`", line) == list(table)


def test_the_three_commands_are_the_quickstarts() -> None:
    from cli.app import QUICKSTART

    for command in QUICKSTART:
        assert f"\ndgad {' '.join(command)}\n" in README


def test_the_recipes_it_names_are_there() -> None:
    named = re.findall(r"(?:--config |extends: )((?:paper|fair)/\S+?)[`\s]", README)
    assert len(named) == 3
    assert set(named) <= set(recipe_names())


def test_every_link_into_the_tree_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target
