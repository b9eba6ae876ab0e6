"""Markdown, read by another parser: what it shows, and that no name becomes markup."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sample_results import HOSTILE, SEEN, doubtful, hostile, row, sample

from evaluators.report.evaluation.headline import headline
from evaluators.report.evidence import Evidence
from evaluators.report.forms.markdown import markdown
from evaluators.report.forms.markup import code, prose
from evaluators.results import Attack, Results
from evaluators.verdict.advice import ADVICE

OURS = {"<code>", "</code>", "<details>", "</details>", "<summary>", "</summary>"}


def parsed(text: str) -> list[Token]:
    """All tokens as GitHub's dialect has them: tables, and HTML where it stands."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [each for token in tokens for each in (token, *(token.children or []))]


def divided(tokens: list[Token]) -> tuple[list[str], str]:
    """What stands in code, in a span or between two tags; and all other text."""
    code, outside, inside, text = [], "", False, ""
    for token in tokens:
        if token.type == "code_inline":
            code.append(token.content)
        elif token.type == "html_inline" and token.content in ("<code>", "</code>"):
            if inside:
                code.append(text)
            inside, text = token.content == "<code>", ""
        elif inside:
            text += token.content
        elif token.type in ("text", "text_special"):
            outside += token.content
    return code, outside


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_code_wherever_it_stands(name: str) -> None:
    for text in (f"# {code(name)}", f"- a {code(name)} b", f"| a |\n|---|\n| {code(name)} |"):
        tokens = parsed(text)
        assert divided(tokens)[0] == [SEEN[name]]
        assert sum(token.type == "td_open" for token in tokens) in (0, 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_stranger_is_markup(name: str) -> None:
    tokens = parsed(markdown([hostile(name)]))
    kinds = {token.type for token in tokens}
    assert not kinds & {"link_open", "image", "em_open", "hr", "fence", "code_block"}
    tags = [token.content for token in tokens if token.type in ("html_inline", "html_block")]
    assert {tag for text in tags for tag in re.findall(r"<[^>]*>", text)} <= OURS | {"<!-- dgad report -->"}
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h2"]
    found, outside = divided(tokens)
    assert SEEN[name] in found
    assert not re.search(r"@|://|www\.|<|\[", outside)
    rows = sum(token.type == "tr_open" for token in tokens)
    cells = sum(token.type in ("th_open", "td_open") for token in tokens)
    assert (rows, cells) == (1 + 5 + 1 + 1, 6 * 6 + 2 * 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("38.4 % (35.4 to 41.5) at 8/255", "38.4 % (35.4 to 41.5) at 8/255"),
        ("ask @octocat now", "ask `@octocat` now"),
        ("see http://a.example", "see `http://a.example`"),
        ("max_abs_diff is 1", "`max_abs_diff` is 1"),
        ("**bold** text", "`**bold**` text"),
        ("a|b", "<code>a&#124;b</code>"),
    ],
)
def test_sentences_stay_readable(text: str, expected: str) -> None:
    assert prose(text) == expected


def test_the_answer_comes_first() -> None:
    text = markdown([sample()])
    (answer,) = re.findall(r"\*\*(Of.*)\*\*", text)
    assert answer == (
        "Of 1,000 images, 71.2 % were classified correctly, and 38.4 % (95 % interval 35.4 to 41.5) "
        "still were under the worst attack found at Linf 8/255. Attacks: pgd, autoattack, square."
    )
    assert text.index(answer) < text.index("Believable: **high**") < text.index("| `pgd` |")
    assert "| `cw2` | unbounded |  |  | 100.0 % | 0.751 |" in text
    assert "| `square` (first 300) | 8/255 | 50.0 % |" in text
    assert "| `transfer:resnet20:pgd` (skipped) | 8/255 |  |  |  |  |" in text
    assert "Weakest of 2 classes on clean images: `dog`, 62.4 % (312 of 500)" in text
    assert "Weakest of 2 classes under attack at Linf 8/255: `cat`, 18.8 % (94 of 500)" in text
    assert "`transfer:resnet20:pgd`: skipped: there is no surrogate" in text
    assert "| gate |" not in text
    assert "| `worst case, Linf` | 8/255 | 38.4 % |" in text
    fold = text.partition("<details>")[2]
    assert "\n- Believable: whether checks of this evaluation found signs" in fold
    assert "\n- Success: the share of the images that an attack tried" in fold
    assert "- Gradients against runtime: `logits differ by at most 1e-06, same answers on 100 %`" in fold


def ran(results: Results) -> str:
    """What the page says of the attacks that ran."""
    return headline(Evidence(results, Path(), None, ())).ran


def test_an_attack_that_stands_in_for_autoattack_is_not_called_by_its_name() -> None:
    """On the page and in Markdown: the fast one is named beside what was not run, the larger one contains it."""
    fast, larger = row("autoattack-fast", 384, autoattack="near"), row("autoattack-max", 380, autoattack="whole")
    told = "AutoAttack, which papers compare by, was not run"
    stands = "autoattack-fast stands in for it, and may leave a little more right."
    near = sample(attacks=[row("pgd", 400), fast])
    assert f"Attacks: pgd, autoattack-fast. {told}: {stands}" in markdown([near])
    assert ran(near) == (f"The attacks were pgd and autoattack-fast. {told} on all images: {stands}")
    for whole in ([larger], [fast, larger], [fast, row("autoattack", 384)]):
        found = sample(attacks=whole)
        assert told not in markdown([found])
        assert told not in ran(found)
    part = sample(attacks=[row("pgd", 400), fast | {"n": 300, "robust": 100}])
    assert ran(part).endswith("on all images: expect a lower figure.")
    elsewhere = fast | {"surrogate": "a", "source": "transfer", "id": "transfer:a:autoattack-fast"}
    assert "expect a lower figure" in markdown([sample(attacks=[elsewhere])])


def test_older_files_tell_autoattack_by_its_name() -> None:
    assert [Attack(**row(name, 384)).standing for name in ("autoattack", "autoattack-rand", "pgd")] == [
        "whole",
        "whole",
        "no",
    ]


@pytest.mark.parametrize(
    ("attacks", "told"),
    [
        ([row("pgd", 400)], True),
        ([row("pgd", 400), row("square", 150, n=300)], True),
        ([row("transfer:a:square", 400, name="square", source="transfer", surrogate="a")], True),
        ([row("pgd", 400), row("autoattack", None, status="failed")], True),
        ([row("autoattack@8/255", 400, name="autoattack")], False),
    ],
)
def test_an_evaluation_without_autoattack_says_so(attacks: list[dict[str, object]], told: bool) -> None:
    text = markdown([sample(attacks=attacks)])
    assert ("AutoAttack, which papers compare by, was not run: expect a lower figure." in text) == told


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([0, 0, 0], "Weakest of 3 classes on clean images: no image of any class is right"),
        ([5, 5, 5], "Weakest of 3 classes on clean images: all 3 classes share the lowest share, 50.0 %"),
        ([5, 7, 5], "Weakest of 3 classes on clean images: `a`, `c`, each 50.0 %"),
        ([5, 4, 5], "Weakest of 3 classes on clean images: `b`, 40.0 % (4 of 10)"),
        ([5], "Weakest of 1 class on clean images: `a`, 50.0 % (5 of 10)"),
        ([1] * 7 + [2], "Weakest of 8 classes on clean images: `a`, `b`, `c`, `d`, `e` and 2 more, each 10.0 %"),
    ],
)
def test_classes_that_share_the_lowest_share_are_all_weakest(right: list[int], expected: str) -> None:
    classes = [{"class": "abcdefgh"[at], "n": 10, "correct": each} for at, each in enumerate(right)]
    total, n = sum(right), 10 * len(right)
    text = markdown([sample(clean={"accuracy": total / n, "correct": total, "n": n, "classes": classes})])
    assert f"\n- {expected}\n" in text


@pytest.mark.parametrize(("verdict", "caution"), [("warn", "has doubts"), ("unreliable", "is unreliable")])
def test_doubts_come_before_figures_and_figures_do_not_boast(verdict: str, caution: str) -> None:
    text = markdown([sample(checks=doubtful(verdict))])
    assert "and at most 38.4 % (" in text
    assert caution in text
    assert f"Believable: **{verdict}**" in text
    reason = f"- `logits`: the outputs sum to 1: probabilities hide gradients. {ADVICE['logits'].action}\n"
    assert text.index(reason) < text.index("| attack |")


def test_no_attack_is_no_robustness() -> None:
    text = markdown([sample(attacks=[row("cw2", None, eps=None)], worst_case=[])])
    assert "No attack inside an eps-ball was finished on all of them." in text


def test_every_radius_is_in_the_answer() -> None:
    worst = sample().worst_case[0].model_dump(by_alias=True)
    text = markdown([sample(worst_case=[worst, worst | {"eps": 4 / 255, "robust_accuracy": 0.5}])])
    assert "worst attack found at Linf 8/255; 50.0 % (95 % interval 35.4 to 41.5) at Linf 4/255." in text


def test_gates_say_whether_and_by_how_much() -> None:
    gates = [
        {"name": "clean", "passed": True, "required": "at least 70%", "got": "71.2% (712 of 1,000)"},
        {"name": "worst-case", "passed": False, "required": "at least 40%", "got": "38.4%", "detail": "too few images"},
    ]
    text = markdown([sample(gates=gates)])
    assert "| `clean` | passed | 71.2% (712 of 1,000) | at least 70% |  |" in text
    assert "| `worst-case` | **FAILED** | 38.4% | at least 40% | too few images |" in text


def test_several_models_stand_side_by_side() -> None:
    other = sample(
        model={"path": "int8.onnx", "sha256": "0" * 64, "format": "onnx", "metadata": None},
        attacks=[row("pgd", 300), row("fgsm", 500)],
        checks=doubtful(),
    )
    text = markdown([sample(), other])
    assert "| attack | eps | `runs/student.onnx` | `int8.onnx` |" in text
    assert "| `pgd` | 8/255 | 40.0 % (37.0 to 43.0) | 30.0 % (27.0 to 33.0) |" in text
    assert "| `fgsm` | 8/255 |  | 50.0 % (47.0 to 53.0) |" in text
    assert "| `cw2` | unbounded | success 100.0 % |  |" in text
    assert "| believable |  | high | warn |" in text
    assert text.count("Of 1,000 images") == 2


def test_norms_and_images_are_not_mixed_up() -> None:
    """One radius in two norms is two questions, and other images give other figures."""
    linf = sample(attacks=[row("pgd", 300, eps=0.5)], worst_case=[])
    l2 = sample(attacks=[row("pgd", 500, norm="l2", eps=0.5), row("cw2", None, eps=None)], worst_case=[])
    text = markdown([linf, l2])
    assert "| `pgd` | Linf 0.5 | 30.0 % (27.0 to 33.0) |  |" in text
    assert "| `pgd` | L2 0.5 |  | 50.0 % (47.0 to 53.0) |" in text
    assert "| `cw2` | unbounded |" in text
    assert "do not compare" not in text
    other = l2.model_copy(update={"dataset": l2.dataset.model_copy(update={"sha256": "0" * 64})})
    assert "results on different images: they do not compare" in markdown([linf, other])


def test_a_distance_in_another_norm_than_the_tables() -> None:
    """The table has L2 alone, and a search in L0 was asked how many values change."""
    far = row("sigma-zero", None) | {"kind": "min-norm", "norm": "l0", "eps": None, "success": 1.0, "failed": 0.0}
    text = markdown([sample(attacks=[far | {"median_distance": 4.0}])])
    assert "- Median distance of `sigma-zero`: 4 in L0\n" in text
    assert "Median distance" not in markdown([sample()])
