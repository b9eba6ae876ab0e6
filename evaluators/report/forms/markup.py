"""Strangers' text in GitHub's Markdown: it can neither be markup nor mention anybody."""

import re
from collections.abc import Sequence

from evaluators.report.pages.words import plain

_WORD = re.compile(r"(?!:)[\w.,;:'()%+=/?!∞-]*")
_LINK = re.compile(r"_|://|www\.", re.IGNORECASE)
"""Words of harmless characters that are markup or links all the same have one of these."""


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
    return word if _WORD.fullmatch(word) and not _LINK.search(word) else code(word)


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table; its cells are Markdown already. The first `left` columns are flush left, the others right."""
    rules = [":--"] * left + ["--:"] * (len(names) - left)
    return [f"| {' | '.join(row)} |" for row in (names, rules, *rows)]
