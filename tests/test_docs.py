"""The pages are run, and what they say of the code is so.

Every `sh` block and every `run:` line of a workflow runs in a folder where the files that it names are, shortened by
what stands in SHORTER, with few queries of Square's, and by nothing else. A comment before a block,
`<!-- needs: 4 GPUs -->`, says why it does not run here; then its flags and files are looked up.
"""

import glob
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from sample_results import doubtful, sample
from scipy.stats import binomtest
from shared import BRIEF, ROOT, Run, artifact, runner
from torch import nn
from trained import trained_on_digits
from victims import as_onnx

from cli import app
from dgad_tk import __version__
from dgad_tk.artifacts.weights import save_weights
from dgad_tk.config.optimizers import OPTIMIZERS
from dgad_tk.config.recipe import recipe_names
from dgad_tk.data import DATASETS
from dgad_tk.data.augment import AUGMENTS
from dgad_tk.methods import ADDONS, METHODS
from dgad_tk.models import MODELS, build_model
from evaluators.attacks import ATTACKS
from evaluators.plan.suites import SUITES
from evaluators.preprocessings.table import PREPROCESSINGS
from evaluators.report.evaluation.headline import headline
from evaluators.report.evidence import Evidence
from evaluators.report.forms.table import FORMS
from exporters.formats import EXPORTERS

LATER: tuple[str, ...] = ()
"""What pages speak of and this tree does not have yet: beginnings of commands, and files."""

PAGES = [path.relative_to(ROOT).as_posix() for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]]

SHORTER = {
    "dgad train": BRIEF,
    "dgad attack": ["--limit", "4"],
    "dgad attack --model student.onnx --suite full": ["--surrogate", "teacher.onnx", "--set", "cw2.max_iter=5"],
    "dgad attack --model student.onnx --suite paper": ["--set", "cw2-paper.max_iter=5"],
    "dgad attack --model student.onnx --suite fast --attack autoattack": ["--eps", "0.01"],  # which few images break at
    "dgad attack --model student.int8.onnx --attack autoattack": ["--limit", "1"],
    "dgad attack --model student.onnx --attack autoattack-max": ["--set", "autoattack-max.steps=10"],
    "dgad attack --model student.onnx --curve --norm l0": ["--set", "sigma-zero.steps=50"],
    "dgad attack --model student.onnx --model": ["--limit", "2"],
    "dgad attack --model theirs.onnx": ["--limit", "2"],
    "dgad attack --model theirs.onnx --suite blackbox": ["--surrogate", "theirs.onnx", "--set", "square.queries=20"],
    "dgad inspect theirs.onnx --dataset": ["--limit", "4"],
    "dgad bench": ["--seconds", "0.05", "--batch", "1", "--limit", "16"],
}
"""Flags that are put behind commands that begin so; of a flag given twice, Typer takes the last."""

MAKE_STOCK = (
    "train --quiet --out runs/digits-dgad-resnet8 " + shlex.join(BRIEF),
    "export other.safetensors --format onnx",
    "export other.safetensors --format onnx-int8",
    "attack --model student.onnx --suite fast --limit 4 --eps 0.01 --output baseline --quiet",
)

SHORTER_PYTHON = {
    'student="resnet8")': 'student="resnet8", teacher_model="resnet8", epochs=1, limit_train=128)',
    'method="trades")': 'method="trades", epochs=1, limit_train=128)',
    ".subset(32)": ".subset(4)",  # what is hardly trained is slow to break
}

_FENCE = re.compile(
    r"(?:^ *<!-- (?P<note>[^\n]*) -->\n)?^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: `sh`, `python`, ...; what it needs, where it says so; where it is."""

    kind: str
    text: str
    needs: str
    place: str


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    found = []
    for match in _FENCE.finditer(text):
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        needs = (match["note"] or "").removeprefix("needs: ") if (match["note"] or "").startswith("needs: ") else ""
        place = f"{page}:{text.count(chr(10), 0, match.start('kind')) + 1}"
        found.append(Block(match["kind"], "\n".join(lines) + "\n", needs, place))
    assert len(found) == text.count("```") / 2, f"{page}: a block that is not read"
    return found


def commands(script: str) -> list[list[str]]:
    """Its lines as words, without comments."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def workflow_commands(text: str) -> list[list[str]]:
    """All `run:` lines of a workflow, or of a list of steps."""
    document = yaml.safe_load(text)
    steps = document if isinstance(document, list) else chain(*(job["steps"] for job in document["jobs"].values()))
    return [words for step in steps if "run" in step for words in commands(step["run"])]


def is_later(words: list[str]) -> bool:
    return " ".join(words).startswith(tuple(each for each in LATER if each.startswith("dgad ")))


def spoken() -> Iterator[tuple[str, list[str]]]:
    """Every command on every page, with its place: in blocks, run or not, and within sentences."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind in ("sh", "yaml"):
                read = commands if block.kind == "sh" else workflow_commands
                yield from ((block.place, words) for words in read(block.text))
        for sentence in re.findall(r"`((?:dgad|make|python) [^`]+)`", re.sub(_FENCE, "", text_of(page))):
            yield page, shlex.split(" ".join(sentence.split()))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name: a student and its run, in every format, others' models, photographs."""
    folder = tmp_path_factory.mktemp("stock")
    draws = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for channel, name in enumerate(("birch", "maple", "oak")):
            (folder / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 100, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / "photos" / part / name / f"{number}.jpg")
    student = trained_on_digits(
        lambda: build_model("resnet8", in_channels=1, classes=10),
        lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9),
        steps=60,
        batch=64,
    )
    save_weights(folder / "other.safetensors", student, artifact())
    torch.save(student.state_dict(), folder / "teacher.pt")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))
    as_onnx(theirs, folder, (3, 224, 224)).path.rename(folder / "theirs.onnx")
    (folder / "nets").mkdir()
    own = next(block.text for block in blocks("docs/training.md") if "def build(" in block.text)
    (folder / "nets" / "mine.py").write_text(own, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in MAKE_STOCK:
            assert app.run(shlex.split(command)) == 0, command
    shutil.copy(folder / "student.onnx", folder / "teacher.onnx")
    return folder


@pytest.fixture
def dgad(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dgad` in a folder that holds a copy of the stock."""
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return runner(capsys)


RUNNING = [
    page
    for page in PAGES
    if any(block.kind == "yaml" or (block.kind == "sh" and not block.needs) for block in blocks(page))
]


@pytest.mark.parametrize("page", RUNNING)
def test_a_page_runs_from_top_to_bottom(dgad: Run, page: str, short_square: None) -> None:
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.kind == "python":
            run_python(block, names)
        elif block.kind == "sh" and not block.needs:
            for words in commands(block.text):
                assert words[0] == "dgad", f"{block.place}: mark what {words[0]} needs"
                run(dgad, words, block.place)
        elif block.kind == "yaml":  # a server's own commands stand beside ours
            for words in workflow_commands(block.text):
                assert words[0] == "dgad" or block.needs, f"{block.place}: mark what {words[0]} needs"
                if words[0] == "dgad":
                    run(dgad, words, block.place)


def run(dgad: Run, words: list[str], place: str) -> None:
    """Run a command as a shell would, with SHORTER's flags behind it; exit code 0."""
    if is_later(words):
        return
    begins = " ".join(words)
    more = [flag for beginning, flags in SHORTER.items() if begins.startswith(beginning) for flag in flags]
    arguments = [path for word in words[1:] for path in (sorted(glob.glob(word)) if "*" in word else [word])]
    code, _, err = dgad(*arguments, *more)
    assert code == 0, f"{place}: {begins}\n{err}"


def run_python(block: Block, names: dict[str, object]) -> None:
    """Run a block with SHORTER_PYTHON's changes, after the page's earlier ones."""
    code = block.text
    for long, short in SHORTER_PYTHON.items():
        code = code.replace(long, short)
    exec(compile(code, block.place, "exec"), names)


def test_the_python_examples_print_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(text in text_of("docs/python.md") for text in SHORTER_PYTHON)
    names: dict[str, object] = {}
    for block in blocks("docs/python.md"):
        run_python(block, names)
    printed = capsys.readouterr().out
    assert re.search(r"clean \d+\.\d%, worst case \d+\.\d%", printed)
    assert re.search(r"ProjectedGradientDescent: \d+\.\d% robust\nAutoAttack: \d+\.\d% robust", printed)
    assert names["adversarial"].shape == (4, 1, 8, 8)  # type: ignore[attr-defined]


def test_what_is_not_run_is_there() -> None:
    """Commands, their flags, and names from tables; targets of the Makefile; scripts."""
    known = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
    flags = {name: {flag for each in command.params for flag in each.opts} for name, command in known.items()}
    tables = {"--suite": SUITES, "--attack": ATTACKS, "--format": EXPORTERS | {"all": 0}, "--dataset": DATASETS}
    tables |= {"--method": METHODS, "--student": MODELS, "--config": dict.fromkeys(recipe_names())}
    makefile = text_of("Makefile")
    seen = set()
    for place, words in spoken():
        line = f"{place}: {' '.join(words)}"
        if "dgad" in words and words[0] in ("dgad", "torchrun"):
            words = words[words.index("dgad") :]
            if is_later(words) or len(words) == 1 or words[1].startswith("--"):  # flags that Typer adds
                continue
            name = words[1]
            assert name in known, line
            unknown = {word.partition("=")[0] for word in words[2:] if word.startswith("--")} - {"--help"} - flags[name]
            assert not unknown, line
            for flag, value in pairwise(words[2:]):
                if flag in tables and value.islower() and ":" not in value and (flag != "--format" or name == "export"):
                    assert value.removeprefix("transfer:").partition("+")[0] in tables[flag], line
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        elif words[0] in ("python", "bash"):
            assert (ROOT / words[1]).is_file(), line
        seen.add(words[0])
    assert {"dgad", "make", "python", "bash"} <= seen


def test_every_way_to_shorten_is_used() -> None:
    said = [" ".join(words) for _, words in spoken()]
    for beginning in SHORTER:
        assert any(each.startswith(beginning) for each in said), beginning


def test_what_is_for_later_is_not_there_yet() -> None:
    for each in LATER:
        there = each.removeprefix("dgad ") in app.COMMANDS if each.startswith("dgad ") else (ROOT / each).exists()
        assert not there, f"'{each}' is there: take it out of LATER"


@pytest.mark.parametrize(
    ("row", "table"),
    [
        ("methods", METHODS),
        ("add-ons", ADDONS),
        ("students, teachers", MODELS),
        ("optimizers", OPTIMIZERS),
        ("augmentation", AUGMENTS),
        ("datasets", DATASETS),
        ("formats", EXPORTERS),
        ("attacks", ATTACKS),
        ("suites", SUITES),
        ("forms of a report", FORMS),
        ("preprocessings", PREPROCESSINGS),
    ],
)
def test_tables_are_the_codes(row: str, table: dict[str, object]) -> None:
    (line,) = re.findall(rf"^\| {row} \| (.*) \|$", text_of("docs/tables.md"), flags=re.MULTILINE)
    assert re.findall(r"`([^`-][^`]*)`", line) == list(table)  # a flag is an example


def first_column(page: str, header: str) -> list[str]:
    """Of the table whose header row begins so, without backticks."""
    table = text_of(page).split(f"\n| {header} |")[1].split("\n\n")[0]
    return [line.split(" | ")[0].removeprefix("| ").strip("`") for line in table.splitlines()[2:]]


def test_other_tables_are_the_codes() -> None:
    assert first_column("docs/export.md", "format") == list(EXPORTERS)
    assert first_column("docs/training.md", "name") == list(AUGMENTS)
    named = [name.removeprefix("dgad ") for name in first_column("docs/tables.md", "command") if name not in LATER]
    assert sorted(named) == sorted(app.COMMANDS)
    checks = chain(
        *(
            path.read_text(encoding="utf-8").split("Item(")[1:]
            for path in (ROOT / "evaluators/verdict").glob("*checks.py")
        )
    )
    names = {found[1] for found in (re.match(r'\s*"([^"]+)"', text) for text in checks) if found}
    *rows, of_attacks = first_column("docs/reading-a-report.md", "check")
    assert len(names) > 15
    assert set(rows) == names
    assert of_attacks == "the name of an attack"


def half_width(right: int, n: int) -> float:
    """Of the 95 % Wilson interval, in points, by SciPy."""
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return 50 * float(interval.high - interval.low)


def test_intervals_are_as_wide_as_said() -> None:
    text = text_of("docs/reading-a-report.md")
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 8
    for images, apart, half in rows:
        n = int(images.replace(",", ""))
        assert (f"{half_width(n // 5, n):.1f}", f"{half_width(n // 2, n):.1f}") == (apart, half)
    assert round(half_width(18, 36)) == 16  # "some 16 points"


def test_the_top_of_the_page_reads_as_quoted() -> None:
    ends = binomtest(384, 1000).proportion_ci(0.95, method="wilson")
    case = {"norm": "linf", "eps": 8 / 255, "robust_accuracy": 0.384, "robust": 384, "n": 1000}
    results = sample(
        clean={"accuracy": 0.712, "correct": 712, "n": 1000},
        worst_case=[{**case, "ci95": (float(ends.low), float(ends.high))}],
    )
    text = " ".join(text_of("docs/reading-a-report.md").replace("\n>", "\n").split())
    top = headline(Evidence(results, ROOT, None, ()))
    assert f"**{top.clean} {top.robust}** {top.lead} -" in text
    doubted = headline(
        Evidence(results.model_copy(update={"checks": sample(checks=doubtful()).checks}), ROOT, None, ())
    )
    assert f"*{doubted.robust.removesuffix('.')}*" in text


def test_the_readme_is_two_screens_and_has_the_quickstarts_commands() -> None:
    readme = text_of("README.md")
    assert readme.count("\n") <= 100
    for command in app.QUICKSTART:
        assert f"\ndgad {' '.join(command)}\n" in readme
    table = text_of("docs/reading-a-report.md")
    (excerpt,) = (block.text for block in blocks("README.md") if block.kind == "text")
    for line in excerpt.splitlines():
        assert f"\n{line}\n" in table


def test_the_recipes_that_pages_name_are_there() -> None:
    named = [
        name
        for page in PAGES
        for name in re.findall(r"(?:--config |extends: )((?:paper|fair)/\S+?)[`\s]", text_of(page))
    ]
    assert len(named) > 5
    assert set(named) <= set(recipe_names())


def anchors(page: str) -> set[str]:
    """What GitHub calls a page's headings in links."""
    headings = re.findall(r"^#+ (.*)$", re.sub(_FENCE, "", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(_FENCE, "", text_of(page))):
        if re.match(r"https?://[\w.-]+(/|$)", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if file.relative_to(ROOT).as_posix() in LATER:
            continue
        assert file.is_file(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.relative_to(ROOT).as_posix()), f"{page}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = set(re.findall(r"\]\(((?:docs/)?[\w-]+\.(?:md|cff))\)", text_of("README.md")))
    short = {f"docs/{name}" for name in reached if (ROOT / "docs" / name).is_file()}
    assert set(PAGES) - {"README.md"} <= reached | short


def test_the_changelog_keeps_its_form() -> None:
    text = text_of("CHANGELOG.md")
    releases = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds


def test_the_citation_has_what_cff_asks_for() -> None:
    """Citation File Format 1.2.0: what its schema requires of a file and of a reference."""
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["type"], citation["version"]) == ("1.2.0", "software", __version__)
    assert citation["authors"] == [{"name": "The dgad-tk developers"}]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert all({"family-names", "given-names"} <= set(author) for author in paper["authors"])
    assert paper["url"] in text_of("README.md")
