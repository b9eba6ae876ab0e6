"""Results as a LaTeX table with intervals, for a paper: a fragment to `\\input`, which needs the package booktabs."""

from collections.abc import Sequence

from evaluators.report.forms.facts import Line, attacks_run, ball, same_images, side_by_side
from evaluators.report.pages.words import count, plain
from evaluators.results import Results

MARK = "% dgad report"
_ESCAPED = {
    **{char: f"\\{char}" for char in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",  # babel makes commands of it in some languages
    "'": "'{}",  # two are another character, as are two hyphens
    "-": "-{}",
    "[": "{[}",  # after the end of a row, a bracket or a star belongs to it
    "]": "{]}",
    "*": "{*}",
}


def escaped(text: object) -> str:
    """Text of a stranger that LaTeX prints as it stands. Characters that are not ASCII stay: see the first comment."""
    return "".join(_ESCAPED.get(char, char) for char in plain(text))


def latex(results: Sequence[Results]) -> str:
    """One table: a row per attack and radius, a column of shares with intervals per model."""
    several = len(results) > 1
    body = [[escaped(name), escaped(eps), *map(_cell, found)] for name, eps, found in side_by_side(results)]
    names = ["Attack", r"$\varepsilon$", *(escaped(each.model.path) if several else "Accuracy" for each in results)]
    return "\n".join(
        [
            MARK,
            r"% Needs \usepackage{booktabs} in the preamble.",
            "% Where a name is not ASCII, compile with LuaLaTeX or XeLaTeX and a font that has its characters.",
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{_caption(results)}}}",
            f"  \\begin{{tabular}}{{ll{'r' * len(results)}}}",
            r"    \toprule",
            f"    {_row(names)}",
            r"    \midrule",
            *(f"    {_row(cells)}" for cells in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(line: Line | None) -> str:
    if line is None:
        return "{--}"
    if line.share is None:
        return escaped(line.note) if line.success is None else rf"{100 * line.success:.1f}\,\% broken"
    text = rf"{100 * line.share:.1f}"
    if line.ci95:
        low, high = line.ci95
        text += rf" {{\footnotesize({100 * low:.1f}--{100 * high:.1f})}}"
    return f"{text}, {escaped(line.note)}" if line.note else text


def _caption(results: Sequence[Results]) -> str:
    first = results[0]
    model = "the models" if len(results) > 1 else rf"\texttt{{{escaped(first.model.path)}}}"
    images = dict.fromkeys(
        f"{each.dataset.name} {each.dataset.split}, {count(each.dataset.n, 'image')}" for each in results
    )
    radii = dict.fromkeys(ball(each.threat.norm, eps) for each in results for eps in each.threat.eps)
    text = rf"Clean and robust accuracy of {model} in \%, with 95\,\% Wilson intervals in brackets ({_all(images)}"
    text += f"; {_all(radii)})." if radii else ")."
    if not same_images(results):
        text += " The images differ, so the columns do not compare."
    ran = dict.fromkeys(filter(None, map(attacks_run, results)))
    if len(ran) == 1:
        text += f" {escaped(next(iter(ran)))}"
    doubtful = [each for each in results if each.checks.verdict != "high"]
    if doubtful and len(results) == 1:
        text += f" Its checks raised a doubt ({first.checks.verdict})."
    elif doubtful:
        told = dict.fromkeys(f"{each.checks.verdict} for {each.model.path}" for each in doubtful)
        text += f" Checks raised doubts: {_all(told)}."
    return text


def _all(texts: dict[str, None]) -> str:
    return "; ".join(map(escaped, texts))
