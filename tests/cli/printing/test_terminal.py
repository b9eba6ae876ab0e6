"""Tables fit a real terminal of 80 and of 60 columns with every figure whole, and take no escape codes unasked."""

import re
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from terminals import ESCAPE, on_terminal

from cli.printing.matrix import matrix_table
from cli.printing.plan import plan_table
from cli.printing.results_table import results_table
from cli.printing.terminal import columns, plain_table, say
from evaluators.engine.forecast import Forecast, RowForecast
from evaluators.report.matrix import MadeOn, Matrix, Table, Target
from evaluators.results import Attack, Checks, Clean, CleanClass, Dataset, Item, Model, Results, Threat, WorstCase

TABLE = """\
attack                  eps        robust   95 % interval  success  median L2  seconds
clean                               98.3%
fgsm                    0.15        81.4%  77.0% to 85.1%    17.2%      0.999      0.0
pgd                     0.15        76.9%  72.3% to 81.0%    21.8%      0.944      0.2
cw2                     unbounded                           100.0%      0.751     20.5
autoattack              0.15        73.6%  68.8% to 77.9%    25.1%      0.981     27.1
transfer:resnet8:fgsm   0.15        90.6%  87.1% to 93.2%     7.9%      0.979      0.1
transfer:resnet20:fgsm  0.15        90.6%  87.1% to 93.2%     7.9%      0.975      0.1
transfer:resnet8:pgd    0.15        89.4%  85.8% to 92.2%     9.0%      0.957      0.1
transfer:resnet20:pgd   0.15        90.3%  86.8% to 92.9%     8.2%      0.939      0.3
transfer:resnet8:jsma   unbounded                            34.2%      1.913      0.1
transfer:resnet20:jsma  unbounded                            26.8%      1.838      0.2
worst case linf         0.15        73.6%  68.8% to 77.9%
"""
"""Of the quickstart, as it is printed where there is room."""
HEADING = TABLE.splitlines()[0]
FIGURE = re.compile(r"\d+\.\d%|\d+\.\d{3}|\d+\.\d\b|unbounded")


def readme_results(path: str = "student.onnx") -> Results:
    """The evaluation whose table is TABLE."""
    rows, worst = [], []
    for line in TABLE.splitlines()[1:]:
        name, eps = re.split(r"  +", line)[:2]
        cells = {at: line[start:end].strip() for at, (start, end) in COLUMNS.items()}
        share = {at: float(cells[at].rstrip("%")) / 100 for at in ("robust", "success") if cells[at]}
        ends = [float(end.rstrip("%")) / 100 for end in cells["interval"].split(" to ") if end]
        if line.startswith("clean"):
            clean = Clean(
                accuracy=share["robust"], correct=354, n=360, classes=[CleanClass(class_="9", n=36, right=32)]
            )
            continue
        common = {"norm": "linf", "n": 360, "ci95": tuple(ends) or None, "robust_accuracy": share.get("robust")}
        if line.startswith("worst case"):
            worst.append(
                WorstCase.model_validate(
                    {**common, "eps": 0.15, "robust": 265, "classes": [{"class": "9", "n": 36, "robust": 16}]}
                )
            )
            continue
        about: dict[str, object] = {
            "name": name.partition(":")[0],
            "kind": "budget",
            "source": "white-box",
            "surrogate": None,
            "params": {},
            "reason": "",
        }
        about |= {"id": cells["attack"], "eps": None if eps == "unbounded" else float(eps), "status": "done"}
        about |= {"success": share["success"], "median_l2": float(cells["l2"]), "seconds": float(cells["seconds"])}
        rows.append(Attack.model_validate({**common, **about}))
    item = Item("gradients", "warn", "the gradients of this file are small, and an attack that follows them may fail")
    return Results(
        created="2026-01-01",
        command="dgad attack",
        model=Model(path=path, sha256="0", format="onnx", metadata=None),
        dataset=Dataset(name="digits", split="test", n=360, sha256="0"),
        threat=Threat(norm="linf", eps=[0.15]),
        seed=0,
        clean=clean,
        attacks=rows,
        worst_case=worst,
        twin={},
        checks=Checks(verdict="warn", items=[item]),
        environment={},
    )


COLUMNS = {
    "attack": (0, 24),
    "robust": (33, 41),
    "interval": (41, 57),
    "success": (57, 66),
    "l2": (66, 77),
    "seconds": (77, 90),
}
"""Where the README's columns stand."""


def fitted(lines: list[str], width: int) -> str:
    """The table as text, every line of which fits."""
    for line in lines:
        assert cell_len(line) <= width, line
        assert line == line.rstrip()
    return "\n".join(lines)


def test_on_a_wide_terminal_it_looks_as_in_the_readme() -> None:
    with on_terminal(120, NO_COLOR="1") as screen:
        results_table([(readme_results(), Path("attacks/student-875afd64"))])
    assert "\n".join(screen.lines).startswith(TABLE)


@pytest.mark.parametrize("several", [1, 2])
@pytest.mark.parametrize("width", [80, 60])
def test_the_attack_table_fits(width: int, several: int) -> None:
    """Line by line, and each figure of the wide table stands in the narrow one as often."""
    names = ["student.onnx", "a/long/folder/of/students/student.int8.onnx"][:several]
    attacked = [(readme_results(name), Path("attacks/student-875afd64")) for name in names]
    with on_terminal(width, NO_COLOR="1") as screen:
        results_table(attacked)
    text = fitted(screen.lines, width)
    for figure in FIGURE.findall(TABLE):
        assert text.count(figure) >= several * TABLE.count(figure), figure
    assert "robust" in text
    assert "95 % interval" in text
    if (width, several) == (80, 1):
        assert len(screen.lines) == len(TABLE.splitlines()) + 6  # nothing is folded
        assert "transfer:resnet20:jsma  unbounded" in text


@pytest.mark.parametrize("width", [80, 60])
def test_the_plan_and_the_matrix_fit(width: int) -> None:
    rows = (RowForecast("clean, checks", once=2.0), RowForecast("transfer:resnet20:autoattack@4.5/255", image=1.2345))
    forecast = Forecast(rows, (0.9,), images=32, step=100, batch_size=16, processes=1)
    path = "runs/imagefolder-dgad-mobilenetv2/exported/student.int8.onnx"
    with on_terminal(width, NO_COLOR="1") as screen:
        plan_table([(Path("student.onnx"), forecast, 10_000), (Path(path), forecast, 2000)])
    text = fitted([line for line in screen.lines if not line.startswith(path)], width)
    for cell in ("10,000", "2,000", "4.5/255"):
        assert cell in text, cell
    assert "3.4 h" in screen.text
    assert "41 min" in screen.text
    targets = [Target(f"{at}/{path}", str(at), 0.9) for at in range(3)]
    shares: list[list[float | None]] = [[0.123, 0.456, None], [0.789, 0.987, 0.654]]
    tables = [Table("autoattack", "linf", 8 / 255, shares, shares), Table("jsma", "l2", None, shares, shares)]
    made_on = [MadeOn("resnet8", "0"), MadeOn("wrn-34-10-of-the-paper", "7")]
    with on_terminal(width, NO_COLOR="1") as screen:
        matrix_table(Matrix("dgad/matrix/1", targets, made_on, tables), Path("attacks/matrix.json"))
    text = fitted(screen.lines, width)
    for figure in ("*12.3%", "45.6%", "skipped", "78.9%", "98.7%", "65.4%"):
        assert text.count(figure) == 2, figure
    assert text.count("8/255") >= 2


def test_long_names_fold_after_separators_and_never_within_a_number() -> None:
    rows = [["transfer:a-surrogate-of-ours:autoattack@4.5/255", "73.6%"], ["x" * 50, "1.0%"]]
    with on_terminal(30, NO_COLOR="1") as screen:
        plain_table(["attack", "robust"], rows)
    text = fitted(screen.lines, 30)
    assert screen.lines[1].endswith("73.6%")
    assert "@4.5/255" in text.split()
    assert text.count("x") == 50


def test_what_does_not_fit_follows_below() -> None:
    names = ["model", *(f"column {at}" for at in range(9))]
    rows = [[f"model-{row}", *(f"{row}{at}.{at:03}" for at in range(9))] for row in range(3)]
    with on_terminal(40, NO_COLOR="1") as screen:
        plain_table(names, rows)
    text = fitted(screen.lines, 40)
    for cell in [*names[1:], *(cell for row in rows for cell in row[1:])]:
        assert text.count(cell) == 1, cell
    assert text.count("model-2") == text.count("\n\n") + 1 > 1


def test_wide_characters_count_twice() -> None:
    with on_terminal(30, NO_COLOR="1") as screen:
        plain_table(["class", "right"], [["漢字の長い名前です本当に長い名前", "50.0%"], ["ascii", "9.1%"]])
    fitted(screen.lines, 30)
    assert screen.lines[1].endswith("50.0%")


def test_without_a_terminal_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    plain_table(["name", "share"], [["n" * 300, "1.0%"]])
    say("word " * 100)
    out = capsys.readouterr().out
    assert columns(sys.stdout) is None
    assert "n" * 300 + "   1.0%" in out
    assert len(out.splitlines()) == 3


def test_prose_breaks_at_spaces_and_paths_stay_whole() -> None:
    path = "attacks/" + "a" * 60 + "/results.json"
    with on_terminal(40, NO_COLOR="1") as screen:
        say("  twin: the gradients of this file are small, and an attack may fail", indent=4)
        say(path)
    assert screen.text.count(path) == 0 or path in screen.lines
    assert screen.lines[0].startswith("  twin: the")
    assert screen.lines[1].startswith("    ")
    assert all(len(line) <= 40 for line in screen.lines[:-1])


def test_a_strangers_name_cannot_write_escape_codes() -> None:
    with on_terminal(80, NO_COLOR="1") as screen:
        plain_table([f"a{ESCAPE}[31m", "b"], [[f"[red]{ESCAPE}]0;title\x07", "1"]])
        say(f"class '{ESCAPE}[2J'")
    assert ESCAPE not in screen.text
    assert "[red]" in screen.text  # no markup of rich's either


@pytest.mark.parametrize(
    ("variables", "bold"),
    [
        ({}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TTY_COMPATIBLE": "0"}, False),
    ],
)
def test_bold_headings(variables: dict[str, str], bold: bool) -> None:
    with on_terminal(80, **variables) as screen:
        plain_table(["attack", "robust"], [["pgd", "1.0%"]])
    assert (ESCAPE in screen.text) == bold


@pytest.mark.parametrize(("forced", "bold"), [("", False), ("1", True)])
def test_in_a_pipe_only_if_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forced: str, bold: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", forced)
    plain_table(["attack", "robust"], [["pgd", "1.0%"]])
    assert (ESCAPE in capsys.readouterr().out) == bold


@pytest.mark.parametrize(("wanted", "found"), [("50", 50), ("0", 80), ("wide", 80), ("", 80)])
def test_columns_wins_over_the_terminal(wanted: str, found: int) -> None:
    with on_terminal(80, COLUMNS=wanted):
        assert columns(sys.stdout) == found


def test_a_terminal_that_does_not_say_its_width() -> None:
    with on_terminal(0):
        assert columns(sys.stdout) == 80
