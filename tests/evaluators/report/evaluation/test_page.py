"""report.html: figures against hand-made outcomes, names that want to be markup; large, small, old, damaged results."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evidence_files import evidence_folder
from sample_results import HOSTILE, hostile, sample

from dgad_tk.common import UserError, write_json
from evaluators.report.evaluation.page import write_report
from evaluators.report.evidence import read_evidence

VOID = {"meta", "link", "img", "br", "wbr"}


class Page(HTMLParser):
    """A page as a reader has it: its text, tags and attributes. Asserts that tags are closed in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path, *more: Path) -> Page:
    return Page(write_report([read_evidence(each) for each in (folder, *more)], folder / "report.html"))


def test_the_answer_comes_first(tmp_path: Path) -> None:
    """Of 400 images 40 are wrong, and at 0.2 autoattack breaks those with the remainders 1 to 3: 120."""
    page = page_of(evidence_folder(tmp_path))
    start = page.text.index("90.0 % right.")
    assert page.text[start:].startswith("90.0 % right. 60.0 % still right under attack.")
    assert "Of 400 test images, 360 were classified correctly, and 240 still were under the worst attack" in page.text
    assert "60.0 % (55.1 to 64.7 with 95 % confidence" in page.text  # Wilson, by hand
    assert "Believable: high." in page.text
    assert start < page.text.index("Under each attack")
    assert "For these images the true figure is at most this" in page.text


def test_the_radius_it_was_trained_for_leads(tmp_path: Path) -> None:
    model = {"path": "s.onnx", "sha256": "0" * 64, "format": "onnx", "metadata": {"threat": {"eps": 0.1}}}
    page = page_of(evidence_folder(tmp_path, model=model))
    assert "70.0 % still right under attack." in page.text  # at 0.1 the remainders 1 and 2 are broken


@pytest.mark.parametrize("verdict", ["warn", "unreliable"])
def test_a_doubted_headline_does_not_boast(tmp_path: Path, verdict: str) -> None:
    page = page_of(evidence_folder(tmp_path, verdict=verdict))  # type: ignore[arg-type]
    assert "At most 60.0 % right under attack." in page.text
    assert "still right under attack" not in page.text
    reason = page.text.index("the outputs sum to 1: probabilities hide gradients")
    assert page.text.index("At most") < reason < page.text.index("Of 400 test images") < page.text.index("Under each")


def test_of_few_images_the_interval_leads(tmp_path: Path) -> None:
    page = page_of(evidence_folder(tmp_path, n=40, eps=(0.2,)))
    assert "90.0 % right. 54.6 to 81.9 % still right under attack." in page.text  # 28 of 40


def test_figures_of_every_section(tmp_path: Path) -> None:
    page = page_of(evidence_folder(tmp_path))
    for said in (
        "Linf, eps 0.1",
        "autoattack is the strongest that saw all images.",
        "of the first 100 images",  # square
        "art:zoo , failed: it raised <b>an error</b>",
        "80 broken by apgd-ce in 1.5 s",
        "40 broken by apgd-t in 1.5 s",
        "0 broken by square",
        "240 still right",
        "40 wrong before any attack",
        "Half of the 360 images that cw2 broke are no further than 1.5 away",
        "Most often 1 was taken for 2: 40 times.",
        "Wrong answers after autoattack@0.2: the median probability is 60.0 %.",
        "Can this be believed?",
        "outputs are logits",
        "Nothing about images unlike these 400.",
        "onnxruntime 1.31.1",
        "pgd 10 steps of eps/4 from a uniform start (Madry et al., 2018) gradients of the file, and its answers",
        "dgad attack --model 'student.onnx'",
    ):
        assert said in page.text, said
    charts = [attributes["aria-label"] for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert "Robust accuracy against eps: 90.0 % clean, 70.0 % at 0.1, 60.0 % at 0.2" in [
        (each or "").replace("\N{NO-BREAK SPACE}", " ") for each in charts
    ]


def test_class_by_class(tmp_path: Path) -> None:
    """Class c has the images whose remainder is c: 0 is wrong from the start, 1 to 3 break at 0.2, the others hold."""
    page = page_of(evidence_folder(tmp_path))
    assert "The weakest are 4 of 10 classes, at 0.0 %." in page.text
    for line in ("1 100.0 % → 0.0 % of 40", "4 100.0 % → 100.0 % of 40", "0 0.0 % → 0.0 % of 40"):
        assert line in page.text, line


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_are_text(tmp_path: Path, name: str) -> None:
    folder = evidence_folder(
        tmp_path, classes=[name, "b", name + "2"], path=name, gates=[
            {"name": name, "passed": False, "required": name, "got": name, "detail": name}
        ],
        checks={"verdict": "warn", "items": [{"name": name, "verdict": "warn", "detail": name}]},
        command=name,
    )  # fmt: skip
    page = page_of(folder)
    assert not page.all("script")
    tags = {tag for tag, _ in page.tags}
    assert tags <= {
        *("html", "head", "meta", "link", "title", "style", "body", "a", "div", "header", "p", "h1", "h2", "h3", "em"),
        *("bdi", "dl", "dt", "dd", "nav", "ul", "li", "main", "section", "span", "small", "b", "strong", "i", "table"),
        *("thead", "tbody", "tr", "th", "td", "svg", "path", "text", "circle", "rect", "figure", "figcaption", "img"),
        *("pre", "footer", "wbr", "br", "strong"),
    }
    assert html.escape(HOSTILE[name] or name, quote=False) in page.source.replace("&#34;", '"').replace("&#39;", "'")


def test_nothing_is_fetched_or_run(tmp_path: Path) -> None:
    page = page_of(evidence_folder(tmp_path))
    csp = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert csp == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"]
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:image/", "data:,")), value
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_a_thousand_classes_stay_small(tmp_path: Path) -> None:
    names = [f"a rather long name of the class with the number {number}" for number in range(1000)]
    folder = evidence_folder(tmp_path, classes=names, n=5000, shown=0)
    page = page_of(folder)
    assert (folder / "report.html").stat().st_size < 300 * 1024
    assert "Robust accuracy of 1,000 classes" in page.text
    assert page.text.count("→") == 13  # ten weakest, three strongest


def test_photographs_stay_below_three_megabytes(tmp_path: Path) -> None:
    """Noise is what JPEG packs worst."""
    folder = evidence_folder(tmp_path, shape=(3, 224, 224), shown=32)
    page = page_of(folder)
    assert len([each for each in page.all("img") if (each["src"] or "").startswith("data:image/jpeg")]) == 27
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_each_image_says_what_it_is(tmp_path: Path) -> None:
    page = page_of(evidence_folder(tmp_path, classes=["cat", "dog"]))
    assert all(each.get("alt") for each in page.all("img"))
    assert "dog (90 %) became cat" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = {(each["href"] or "")[1:] for each in page.all("a")}
    assert targets <= set(ids)


def test_results_without_their_arrays(tmp_path: Path) -> None:
    folder = evidence_folder(tmp_path)
    for name in ("samples.npz", "gallery.npz"):
        (folder / name).unlink()
    page = page_of(folder)
    assert "samples.npz does not lie beside results.json" in page.text
    assert "60.0 % still right under attack." in page.text
    assert not page.all("img")


def test_results_of_older_versions(tmp_path: Path) -> None:
    """Without the classes' names, sizes and confidences."""
    folder = evidence_folder(tmp_path)
    document = json.loads((folder / "results.json").read_text())
    for part, keys in (("dataset", ("shape", "classes")), ("model", ("size", "notes", "preprocessing"))):
        for key in keys:
            del document[part][key]
    (folder / "results.json").write_text(json.dumps(document))
    for name in ("samples", "gallery"):
        with np.load(folder / f"{name}.npz") as arrays:
            kept = {key: value for key, value in arrays.items() if "confidence" not in key}
        np.savez(folder / f"{name}.npz", **kept)
    page = page_of(folder)
    assert "60.0 % still right under attack." in page.text
    assert "1 became 2 autoattack@0.2" in page.text


def test_without_an_attack_inside_a_ball(tmp_path: Path) -> None:
    folder = evidence_folder(tmp_path)
    document = json.loads((folder / "results.json").read_text())
    document["attacks"] = [row for row in document["attacks"] if row["id"] == "cw2"]
    document["worst_case"] = []
    (folder / "results.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="gallery.npz' does not belong .*autoattack@0.2"):
        read_evidence(folder)
    (folder / "gallery.npz").unlink()
    page = page_of(folder)
    assert "90.0 % right." in page.text
    assert "No attack with a limit on the change looked at all of them; cw2 broke 100.0 % of those" in page.text


@pytest.mark.parametrize("name", ["samples.npz", "gallery.npz"])
@pytest.mark.parametrize("how", ["bytes", "other"])
def test_damaged_arrays(tmp_path: Path, name: str, how: str) -> None:
    folder = evidence_folder(tmp_path)
    if how == "bytes":
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    else:
        np.savez(folder / name, label=np.zeros(3), clean=np.zeros((1, 2)), adversarial=np.zeros(1))
    with pytest.raises(UserError, match=re.escape(name)):
        read_evidence(folder)


def test_several_side_by_side(tmp_path: Path) -> None:
    """Of 240 images that withstand in the first, all withstand in the second, which breaks the same."""
    first = evidence_folder(tmp_path / "a", path="a.onnx")
    second = evidence_folder(tmp_path / "b", path="b.int8.onnx")
    page = page_of(first, second)
    assert "2 models: 60.0 % still right under attack." in page.text
    assert "All of them answered the same attacks on the same images." in page.text
    assert "240 of 400 images (60.0 %) withstand in all of them." in page.text
    assert "pgd at 0.1, made on a.onnx b.int8.onnx resnet8 11.1 % 11.1 %" in page.text  # 40 of 360
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    other = evidence_folder(tmp_path / "c", path="c.onnx", n=200)
    assert "Do not compare the figures one by one" in page_of(first, other).text


def test_the_papers_figures_stand_beside_ours(tmp_path: Path) -> None:
    paper = {"table": 4, "figures": {"clean": 87.58, "aa": 50.59}, "source": "the paper"}
    record = {"training": {"paper": paper}, "threat": {"eps": 0.2}}
    page = page_of(
        evidence_folder(tmp_path, model={"path": "s.onnx", "sha256": "0" * 64, "format": "onnx", "metadata": record})
    )
    assert "clean 87.58 % 90.00 %" in page.text
    assert "AutoAttack 50.59 % 60.00 % autoattack@0.2" in page.text


def test_results_with_little_in_them(tmp_path: Path) -> None:
    bare = sample(clean={"accuracy": 0.0, "correct": 0, "n": 0}, attacks=[], worst_case=[], twin={}, environment={})
    write_json(tmp_path / "results.json", bare.to_dict())
    assert "No attack has a result, so nothing is known about its robustness." in page_of(tmp_path).text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_record_that_is_a_strangers_throughout(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "results.json", hostile(name).to_dict())
    page = page_of(tmp_path)
    assert not page.all("script")
    assert not page.all("img")
    odd = {"training": name, "threat": [name], "source_sha256": [name], "precision": {name: name}}
    model = {"path": name, "sha256": "", "format": name, "metadata": odd}
    write_json(tmp_path / "results.json", sample(model=model).to_dict())
    page_of(tmp_path)
