"""The page of a comparison: what stands on it, that nothing of a stranger's runs, and that it stays small."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from answered import answered, row

from evaluators.report.comparison import MOST_CHANGES, write_comparison
from evaluators.verdict.comparison.compare import comparison
from evaluators.verdict.comparison.document import Comparison
from evaluators.verdict.records import Record

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e"
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """A page as a browser would take it: its tags, attributes and text. Tags must close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: dict[str, list[str]] = {}
        text = path.read_text(encoding="utf-8")
        self.box = text.partition('class="verdict')[2].partition("</div>")[0]
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [str(value) for name, value in attrs if name == "id"]
        self.links += [str(value) for name, value in attrs if name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)

    def text(self, tag: str) -> str:
        return " ".join(" ".join(self.texts.get(tag, [])).split())


def page(found: Comparison, folder: Path) -> Page:
    return Page(write_comparison(found, folder / "compare.html"))


def drawn(model: str, share: float, *, n: int = 400, of: int = 3, seed: int = 0, **more: object) -> Record:
    """Under two attacks, images are right with a probability; all are right when clean."""
    rng, rows = np.random.default_rng(seed), [row("fgsm"), row("pgd")]
    label = [at % of for at in range(n)]
    answers = {each.id: np.where(rng.random(n) < share, label, 0).tolist() for each in rows}
    names = [f"class {number}" for number in range(of)]
    return answered(label, label, answers, rows, model=model, **{"classes": names, **more})  # type: ignore[arg-type]


def test_the_answer_comes_first(tmp_path: Path) -> None:
    found = comparison([drawn("a.onnx", 0.9), drawn("b.onnx", 0.4, seed=1)], ["a", "b"], command="dgad compare a b")
    seen = page(found, tmp_path)
    test = found.pairs[0].tests[-1]
    assert seen.text("h1") == f"{test.finding}: more than chance explains."
    everything = seen.text("main")
    for text in (
        test.evidence,
        "dgad compare a b",
        "in the reference",
        "Holm",
        f"{test.lost:,} lost, {test.won:,} won",
    ):
        assert text in everything
    for each in found.pairs[0].tests:  # a value stands beside every mark
        low, high = (f"{abs(100 * end):.1f}" for end in each.ci95)
        assert low in everything
        assert high in everything
    assert seen.attributes.count(("open", None)) == seen.tags.count("details") > 0  # on paper, closed ones are lost
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))
    assert "script" not in seen.tags


def test_of_several_the_headline_is_what_all_have(tmp_path: Path) -> None:
    records = [drawn(f"{name}.onnx", 0.7, seed=number) for number, name in enumerate("abc")]
    found = comparison(records, ["a", "b", "c"])
    kept = found.survival[-1]
    share = f"{100 * kept.in_all.kept / kept.reference_right:.1f} %"
    assert page(found, tmp_path).text("h1") == (
        f"Of the {kept.reference_right} images that are right in a.onnx under the worst attack at 0.1, "
        f"{share} are right in all 3 results."
    )


def test_the_first_of_many_changed_images(tmp_path: Path) -> None:
    found = comparison([drawn("a.onnx", 1.0), drawn("b.onnx", 0.2, seed=1)], ["a", "b"])
    (test,) = (each for each in found.pairs[0].tests if each.name == "worst-case")
    assert len(test.changes) > MOST_CHANGES
    text = page(found, tmp_path).text("main")
    assert f"The first {MOST_CHANGES} of {len(test.changes)};" in text
    listed = " ".join(f"{each.index} lost" for each in test.changes[:MOST_CHANGES])
    assert [f"{each.index} lost" in text for each in test.changes[:MOST_CHANGES]] == [True] * MOST_CHANGES, listed
    assert f"{test.changes[MOST_CHANGES].index} lost" not in text


def test_what_strangers_wrote_is_text(tmp_path: Path) -> None:
    named = {"classes": [HOSTILE, "b", "c"], "dataset": HOSTILE, "verdict": "unreliable"}
    found = comparison(
        [drawn(HOSTILE, 0.9, **named), drawn(f"{HOSTILE}.onnx", 0.5, seed=1, **named)],
        [HOSTILE, HOSTILE],
        command=HOSTILE,
    )
    seen = page(found, tmp_path)
    assert not {"script", "img", "iframe"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert not [value for _, value in seen.attributes if value and "\x1b" in value]
    assert "<script>alert(1)</script>" in seen.text("main")
    assert "\x1b" not in seen.text("html")
    assert "These figures can be doubted." in seen.text("header")
    assert seen.text("li").count("found something to doubt (unreliable): the twin differs") == 2
    assert "found something to doubt" in seen.box


def test_a_thousand_classes_stay_small(tmp_path: Path) -> None:
    records = [drawn(f"{seed}.onnx", 0.8 - seed / 10, n=5000, of=1000, seed=seed) for seed in range(2)]
    path = write_comparison(comparison(records, ["a", "b"]), tmp_path / "compare.html")
    assert "Of 1,000 classes, those that lost most and the 4 that won most are shown." in Page(path).text("main")
    assert path.stat().st_size < 120_000


def test_where_nothing_differs_and_nothing_is_right(tmp_path: Path) -> None:
    """Axes and shares of nothing."""
    wrong = [answered([0, 1], [1, 0], {"pgd": [1, 0]}, model=name) for name in ("a.onnx", "b.onnx")]
    seen = page(comparison(wrong, ["a", "b"]), tmp_path)
    assert seen.text("h1").startswith("No difference shown in robustness under pgd at 0.1: b.onnx 0.0 points (")
    assert seen.text("main").count("Weakest: all 2 classes with 0.0 % each; in the reference all 2 classes with") == 2
    assert seen.text("main").count("No class differs: each is right as often in both.") == 2
    assert "details" not in seen.tags
    assert "Compared on 20" in seen.text("main")
    assert "There is none, so nothing can survive." in seen.text("main")
    assert "None." in seen.text("main")
