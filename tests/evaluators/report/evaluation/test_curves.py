"""Curves on the page: where the line falls, points of AutoAttack on it, round radii, names that want to be markup."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from evidence_files import evidence_folder
from sample_results import HOSTILE, SEEN

from evaluators.curves import Curve, ExactPoint, steps_of
from evaluators.report.evaluation.curves import curves, round_radii
from evaluators.report.evaluation.page import write_report
from evaluators.report.evidence import read_evidence
from evaluators.report.pages.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH


def curve_of(*exact: tuple[float, int], name: str = "fmn", norm: str = "linf") -> Curve:
    """Of ten images eight are right; they fall one after the other, at 0.02, 0.04, ... 0.16."""
    points = [
        ExactPoint(row=f"{name}@{eps:g}", eps=eps, robust=k, robust_accuracy=k / 10, ci95=(0.1, 0.9))
        for eps, k in exact
    ]
    return Curve(row=name, norm=norm, n=10, steps=steps_of(8, [0.02 * (k + 1) for k in range(8)]), exact=points)


def page_of(folder: Path, *found: Curve) -> str:
    evidence = read_evidence(evidence_folder(folder, n=40, curves=[each.model_dump(mode="json") for each in found]))
    return write_report([evidence], folder / "report.html").read_text(encoding="utf-8").replace("\xa0", " ")


def test_the_line_falls_where_images_do(tmp_path: Path) -> None:
    evidence = read_evidence(evidence_folder(tmp_path, n=40, curves=[curve_of((0.08, 3)).model_dump(mode="json")]))
    (curved,) = curves(evidence.results)
    stairs, points = curved.chart.lines
    places = [tuple(map(float, each.split())) for each in re.split("[ML]", stairs.path) if each]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    assert places[0] == (LEFT, round(bottom - 0.8 * (bottom - TOP), 1))
    assert places[-1] == (right, bottom)
    falls = [x for (x, above), (other, below) in pairwise(places) if x == other and below > above]
    assert falls == pytest.approx([LEFT + (right - LEFT) * (k + 1) / 8 for k in range(8)], abs=0.06)
    (dot,) = points.dots
    assert (dot.x, dot.y) == pytest.approx(((LEFT + right) / 2, bottom - 0.3 * (bottom - TOP)), abs=0.06)
    assert not points.path
    assert curved.said == (
        "80.0 % of 10 images are right when clean; half of those have fallen by 0.08; AutoAttack leaves 30.0 % at 0.08."
    )


def test_the_page_says_that_it_is_an_upper_bound(tmp_path: Path) -> None:
    page = page_of(tmp_path, curve_of((0.08, 3)), curve_of(norm="l2", name="ddn"))
    assert page.count("An upper bound at every eps") == 2
    assert page.count("The points are from attacks inside the ball") == 1  # the other has none
    assert "Linf, from one run of <bdi>fmn" in page or "Linf, from one run of fmn" in page
    assert "AutoAttack at this radius, with 95 % interval" in page


def test_without_curves_nothing_is_said(tmp_path: Path) -> None:
    assert "An upper bound at every eps" not in page_of(tmp_path)


def test_no_image_fell(tmp_path: Path) -> None:
    still = Curve(row="fmn", norm="l0", n=10, steps=steps_of(8, []))
    assert "80.0 % of 10 images are right when clean." in page_of(tmp_path, still)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_are_text(tmp_path: Path, name: str) -> None:
    page = page_of(tmp_path, curve_of((0.08, 3), name=name))
    assert "<script>alert(1)</script>" not in page
    assert SEEN[name]


def test_a_strangers_curve_of_any_length_stays_small(tmp_path: Path) -> None:
    long = Curve(row="fmn", norm="linf", n=10**5, steps=steps_of(10**5, [k / 10**5 for k in range(10**5)], most=10**6))
    assert len(page_of(tmp_path, long)) < 400_000


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (curve_of(), [0, 20 / 255, 40 / 255]),
        (curve_of((8 / 255, 3)), [0, 20 / 255, 40 / 255]),
        (curve_of((0.05, 3)), [0, 0.05, 0.1, 0.15]),  # whose radius is no grey level
        (curve_of(norm="l2"), [0, 0.05, 0.1, 0.15]),
        (Curve(row="jsma", norm="l0", n=3, steps=steps_of(3, [])), [0, 1]),  # no part of a value can change
    ],
)
def test_round_radii(curve: Curve, expected: list[float]) -> None:
    assert round_radii(curve, about=4) == pytest.approx(expected)
