"""Strangers' text in GitHub's Markdown: it can neither be markup nor mention anybody."""

import re
from collections.abc import Sequence

from evaluators.report.forms.words import plain

_WORD = re.compile(r"(?!www\.)[\w.,;:'()%+=/?!∞-]*", re.IGNORECASE)
"""Words that mean nothing to Markdown. A colon before two slashes and an underscore do."""


def code(text: object) -> str:
    """Text as code, where links, mentions, emphasis and tags are plain characters.

    A backtick ends a code span, and a bar ends a cell even inside one; so such text stands between `<code>` tags, every
    character but letters, digits and spaces as a numeric reference.
    """
    line = plain(text)
    if line.strip() and not re.search(r"[`|\\]", line):
        return f"`{line}`"
    return "<code>" + re.sub(r"[^\w ]|_", lambda found: f"&#{ord(found[0])};", line) + "</code>"


def prose(text: object) -> str:
    """A sentence: words that might be markup, links or mentions are shown as code."""
    return " ".join(_word(word) for word in plain(text).split(" "))


def _word(word: str) -> str:
    harmless = _WORD.fullmatch(word) and "_" not in word and "://" not in word
    return word if harmless else code(word)


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table; its cells are Markdown already. The first `left` columns are flush left, the others right."""
    rules = [":--"] * left + ["--:"] * (len(names) - left)
    return [f"| {' | '.join(row)} |" for row in (names, rules, *rows)]
