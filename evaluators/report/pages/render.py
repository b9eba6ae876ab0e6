"""Pages from templates. Everything that a template prints is escaped; nothing on a page is fetched or run.

A page is one file: the style sheet stands in it, pictures are data, charts are SVG. Its Content-Security-Policy allows
no script and no request, so that a class name that got past the escaping could still do nothing.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dgad_tk import __version__
from dgad_tk.common import written_aside
from evaluators.report.pages import words

_COMMANDS = re.compile(r"(<pre>.*?</pre>)", re.DOTALL)
_NUMBER_AND_SIGN = re.compile(r"(?<=[0-9]) %")
"""A number must not stand on one line and its sign on the next."""

FOLDER = Path(__file__).parent
TEMPLATES = FOLDER / "templates"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        each.__name__: each
        for each in (
            words.percent,
            words.interval,
            words.points,
            words.count,
            words.duration,
            words.size,
            words.name,
            words.plain,
            words.brief,
            soft,
        )
    } | {"eps": words.eps_text, "listed": words.listed}
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    environment.globals |= {"style": Markup(style), "version": __version__}
    return environment


def soft(text: str) -> Markup:
    """A name that may be broken after each colon, as `transfer:resnet20:pgd` has them."""
    return Markup(":<wbr>").join(text.split(":"))


def render(template: str, **context: Any) -> str:
    """A template of `templates/`, filled in.

    Raises:
        jinja2.UndefinedError: the template names something that `context` lacks.
    """
    found = _environment().get_template(template).render(**context)
    parts = _COMMANDS.split(found)  # commands are copied from a page: they stay as they are
    parts[::2] = [_NUMBER_AND_SIGN.sub("\N{NO-BREAK SPACE}%", each) for each in parts[::2]]
    return "".join(parts)


def part(template: str, **context: Any) -> Markup:
    """A piece of a page, which other templates take as it is."""
    return Markup(render(template, **context))


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Render a page into `path`, whole or not at all; the path."""
    text = render(template, **context)
    with written_aside(path) as aside:
        # A lone surrogate, which JSON can hold, has no bytes.
        aside.write_bytes(text.encode("utf-8", "replace"))
    return path
