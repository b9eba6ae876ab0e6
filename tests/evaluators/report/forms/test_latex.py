"""The LaTeX table: every special character is escaped, by TeX's rules written out here once more."""

import re

import pytest
from sample_results import HOSTILE, SEEN, doubtful, hostile, row, sample

from evaluators.report.forms.latex import escaped, latex

COMMANDS = {
    *("begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "footnotesize", "texttt"),
    *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textasciigrave"),
    *("varepsilon", "char", "\\", ",", "%", "&", "#", "_", "$", "{", "}"),
}
PRINTED = {
    "textbackslash": "\\",
    "textasciitilde": "~",
    "textasciicircum": "^",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textasciigrave": "`",
}


def tokens(text: str) -> list[str]:
    """Control sequences with their backslash, and single characters, as TeX reads a line without comments."""
    return re.findall(r"\\(?:[A-Za-z]+|.)|.", text, flags=re.DOTALL)


def printed(text: str) -> str:
    """What TeX prints of escaped text."""
    found, left = "", tokens(text)
    while left:
        token = left.pop(0)
        if token == "\\char":
            assert left[:4] == ["3", "4", "{", "}"]
            left, found = left[4:], found + '"'
        elif token[0] == "\\" and len(token) == 2 and not token[1].isalpha():
            found += token[1]
        elif token[0] == "\\":
            assert left[:2] == ["{", "}"], f"{token} would swallow the next space"
            left, found = left[2:], found + PRINTED[token[1:]]
        else:
            assert token not in '%&#_$^~<>|"', f"{token} is not escaped"  # the last four are other glyphs in OT1
            found += token if token not in "{}" else ""
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_printed_as_they_stand(name: str) -> None:
    text = escaped(name)
    assert printed(text) == SEEN[name]
    assert not re.search(r"--|''|``|^[\[*]", text)  # ligatures, and what a row's end would take


@pytest.mark.parametrize("name", HOSTILE)
def test_the_table_has_no_commands_but_ours(name: str) -> None:
    lines = latex([hostile(name), hostile(name)]).splitlines()
    comments = [line for line in lines if line.startswith("%")]
    assert len(comments) == 3
    body = [line for line in lines if not line.startswith("%")]
    found = tokens("\n".join(body))
    assert {token[1:] for token in found if token[0] == "\\"} <= COMMANDS
    assert "%" not in found
    assert found.count("{") == found.count("}")
    for line in body:
        if line.endswith(r" \\"):
            assert tokens(line).count("&") == 3  # attack, eps, two models
            assert tokens(line)[:-1].count("\\\\") == 0


def test_the_table() -> None:
    text = latex([sample()])
    assert text.startswith("% dgad report\n")
    assert r"% Needs \usepackage{booktabs}" in text
    assert "    clean &  & 71.2 \\\\\n" in text
    assert r"    autoattack & 8/255 & 38.4 {\footnotesize(35.4--41.4)} \\" in text
    assert r"    cw2 & unbounded & 100.0\,\% broken \\" in text
    assert r"    square & 8/255 & 50.0 {\footnotesize(47.0--53.0)}, first 300 \\" in text
    assert r"    transfer:resnet20:pgd & 8/255 & skipped \\" in text
    assert r"    worst case, Linf & 8/255 & 38.4 {\footnotesize(35.4--41.5)} \\" in text
    assert "(cifar10 test, 1,000 images; Linf 8/255). Attacks: pgd, autoattack, square." in text
    assert "doubt" not in text
    assert " Its checks raised a doubt (warn)." in latex([sample(checks=doubtful())])
    assert " Checks raised doubts: warn for runs/student.onnx." in latex([sample(checks=doubtful()), sample()])
    for opening in ("table", "tabular"):
        assert text.count(f"\\begin{{{opening}}}") == text.count(f"\\end{{{opening}}}") == 1


def test_several_models_are_columns() -> None:
    other = sample(model={"path": "a_b.onnx", "sha256": "0" * 64, "format": "onnx", "metadata": None})
    text = latex([sample(), other.model_copy(update={"attacks": [sample(attacks=[row("fgsm", 500)]).attacks[0]]})])
    assert r"Attack & $\varepsilon$ & runs/student.onnx & a\_b.onnx \\" in text
    assert r"fgsm & 8/255 & {--} & 50.0 {\footnotesize(47.0--53.0)} \\" in text
    assert r"\begin{tabular}{llrr}" in text


def test_columns_of_other_images_do_not_compare() -> None:
    one = sample()
    other = one.model_copy(update={"dataset": one.dataset.model_copy(update={"sha256": "0" * 64})})
    assert "the columns do not compare" in latex([one, other])
    assert "the columns do not compare" not in latex([one, one])
