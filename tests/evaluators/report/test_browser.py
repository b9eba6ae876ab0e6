"""The pages in a real browser: nothing fetched, a quiet console, no sideways scroll, contrast, keyboard, print.

Without a browser these tests are skipped, and say what to install; where TEST_BROWSER is set, as in CI, they fail.
"""

import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from answered import answered, row
from evidence_files import evidence_folder
from playwright.sync_api import Browser, Error, sync_playwright
from playwright.sync_api import Page as Tab
from shared import BRIEF

from evaluators.report.comparison import write_comparison
from evaluators.report.evaluation.page import write_report
from evaluators.report.evidence import read_evidence
from evaluators.verdict.comparison.compare import comparison

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BAD = "</script><script>alert(document.title='pwned')</script><img src=x onerror=alert(1)>"
LONG = "a-class-whose-name-was-made-by-a-program-and-has-neither-a-space-nor-an-end-" * 3
PAGES = ("evaluation", "several", "photographs", "many-classes", "comparison", "training")
VIEWS = {"desktop": (1400, 900, "light"), "phone": (390, 844, "light"), "dark phone": (390, 844, "dark")}

CONTRAST = """() => {
  const parse = text => { const p = text.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p, 1] : p };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = node => {
    const layers = [];
    for (let at = node; at instanceof Element; at = at.parentElement)
      layers.push(parse(getComputedStyle(at).backgroundColor));
    const page = parse(getComputedStyle(document.body).backgroundColor);
    return layers.reverse().reduce((under, top) => over(top, under), page);
  };
  const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || ['STYLE', 'TITLE', 'title'].includes(node.tagName) || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), svg = node.namespaceURI.endsWith('svg');
    const back = ground(node), front = over(parse(svg ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    const ratio = (a + .05) / (b + .05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${text.slice(0, 40)}`);
  }
  return found;
}"""
"""Texts whose contrast is below WCAG's AA: 4.5, or 3 for large text."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    wanted = os.environ.get("TEST_BROWSER")
    path = next(filter(None, map(shutil.which, [wanted] if wanted else NAMES)), wanted)
    if path is None:
        pytest.skip("no Chromium: `apt-get install chromium` (or set TEST_BROWSER to its path) to test the pages in it")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind of page, with names that want to run and names that want to be wide."""
    root = tmp_path_factory.mktemp("pages")
    plain = evidence_folder(root / "plain", n=360, eps=(0.15,))
    odd = evidence_folder(root / "odd", classes=[BAD, LONG, "c"], path=f"{BAD}.onnx", verdict="warn", command=BAD)
    other = evidence_folder(root / "other", classes=[BAD, LONG, "c"], path=f"{LONG}.int8.onnx")
    photographs = evidence_folder(root / "photographs", shape=(3, 224, 224), classes=["cat", "dog"])
    many = evidence_folder(root / "many", classes=[f"{LONG} {number}" for number in range(100)], n=2000, shown=4)
    records = [
        answered([0, 1, 2, 0], [0, 1, 2, 1], {"pgd": each}, [row()], model=name, classes=(BAD, LONG, "c"))
        for each, name in (([0, 1, 0, 1], BAD), ([0, 2, 2, 1], LONG))
    ]
    found = {
        "evaluation": write_report([read_evidence(plain)], root / "evaluation.html"),
        "odd": write_report([read_evidence(odd)], root / "odd.html"),
        "several": write_report([read_evidence(odd), read_evidence(other)], root / "several.html"),
        "photographs": write_report([read_evidence(photographs)], root / "photographs.html"),
        "many-classes": write_report([read_evidence(many)], root / "many.html"),
        "comparison": write_comparison(comparison(records, [BAD, LONG], command=BAD), root / "comparison.html"),
        "training": root / "run" / "report.html",
    }
    return found


@pytest.fixture(scope="module", autouse=True)
def _run(pages: dict[str, Path]) -> None:
    from cli import app

    out = pages["training"].parent
    assert app.run(["train", *BRIEF, "--epochs", "2", "--quiet", "--out", str(out)]) == 0


@pytest.fixture
def tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab of the size and theme `request.param`, which fails the test for what it reports or fetches."""
    width, height, scheme = VIEWS[getattr(request, "param", "desktop")]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    found, troubles = context.new_page(), list[str]()
    found.on("console", lambda message: troubles.append(f"console: {message.text}"))
    found.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    found.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
    found.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or troubles.append(asked.url))
    yield found
    context.close()
    assert troubles == []


@pytest.mark.parametrize("tab", VIEWS, indirect=True)
@pytest.mark.parametrize("page", [*PAGES, "odd"])
def test_it_fits_reads_and_is_quiet(page: str, tab: Tab, pages: dict[str, Path]) -> None:
    tab.goto(pages[page].as_uri())
    width = tab.viewport_size["width"] if tab.viewport_size else 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(CONTRAST) == []
    assert tab.evaluate("[...document.images].filter(each => !each.naturalWidth || !each.alt).length") == 0
    assert tab.evaluate("document.scripts.length") == 0
    assert "pwned" not in tab.title().partition("<")[0]
    smallest = tab.evaluate(
        "Math.min(...[...document.querySelectorAll('svg[role=img]')].map("
        "each => each.getBoundingClientRect().width / 380 * 12))"
    )
    assert smallest >= 9.5  # pixels of the text in a chart; infinite without a chart


@pytest.mark.parametrize("page", PAGES)
def test_it_is_built_for_screen_readers(page: str, tab: Tab, pages: dict[str, Path]) -> None:
    tab.goto(pages[page].as_uri())
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.locator("h1").count() == 1
    for landmark in ("banner", "main", "contentinfo"):
        assert tab.get_by_role(landmark).count() >= 1, landmark  # type: ignore[arg-type]
    assert tab.get_by_role("navigation", name="Contents").count() == 1
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(each => +each.tagName[1])")
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    unnamed = tab.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(e => e.getAttribute('role') != 'img' ? "
        "e.getAttribute('aria-hidden') != 'true' : !e.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


def test_the_keyboard_reaches_the_findings_and_enlarges_an_image(tab: Tab, pages: dict[str, Path]) -> None:
    tab.goto(pages["photographs"].as_uri())
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    image = tab.locator("#image-1 img").first
    before = image.bounding_box()
    tab.locator("#image-1 a.trio").focus()
    tab.keyboard.press("Enter")
    after = image.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 2 * before["width"]


def test_the_default_prints_on_four_pages(tab: Tab, pages: dict[str, Path]) -> None:
    tab.goto(pages["evaluation"].as_uri())
    tab.emulate_media(media="print")
    assert not tab.locator(".toc").is_visible()
    printed = tab.pdf(prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 4


def test_the_judge_itself_sees_what_is_wrong(tab: Tab, tmp_path: Path) -> None:
    """Pale text, a script and a request are noticed."""
    page = tmp_path / "bad.html"
    page.write_text("<body style='background:#fff'><p style='color:#bbb'>pale</p><p style='color:#000'>dark</p>")
    tab.goto(page.as_uri())
    assert [text.split(" ")[1] for text in tab.evaluate(CONTRAST)] == ["pale"]
    with pytest.raises(Error, match="ERR_"):
        tab.context.new_page().goto("http://127.0.0.1:9/")
