"""What the tree promises: imports lead down, folders stay small, the wheel has four packages, the command is light."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from shared import ROOT

MAY_IMPORT = {
    "dgad_tk": set(),
    "exporters": {"dgad_tk"},
    "evaluators": {"dgad_tk"},
    "cli": {"dgad_tk", "exporters", "evaluators"},
}
FLOORS = {
    "dgad_tk": (
        "common quota spinning cores strangers draws distributed models data config ascent "
        "artifacts answers methods teachers training"
    ),
    "exporters": (
        "onnx_read onnx_twin onnx_open onnx_student torch_files onnx_write parity formats siblings export bench"
    ),
    "evaluators": "target preprocessings attacks plan engine fields curves results verdict report",
    "cli": "documents printing flags commands completion app __main__",
}
"""Folders and files of each package from the ground up: an import leads down, or stays where it is."""

TABLES = {"dgad_tk/methods", "exporters/onnx_twin/operators"}
"""Folders whose files are rows of one table, and as many as there are rows."""


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def arrows() -> Iterator[tuple[str, str]]:
    """Each module, and a module of ours that it imports, wherever in it that stands."""
    known = modules()
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [each if each in known else str(node.module) for each in inside]
            else:
                continue
            yield from ((name, each) for each in found if each in known and each != name)


def test_imports_point_one_way() -> None:
    found = list(arrows())
    assert len(found) > 500
    for importer, imported in found:
        package, other = importer.split(".")[0], imported.split(".")[0]
        assert other in MAY_IMPORT[package] | {package}, f"{importer} imports {imported}"


@pytest.mark.parametrize("package", FLOORS)
def test_imports_lead_down(package: str) -> None:
    floors = FLOORS[package].split()
    assert {name.split(".")[1] for name in modules() if name.startswith(f"{package}.")} == set(floors)
    for importer, imported in arrows():
        if importer.startswith(f"{package}.") and imported.startswith(f"{package}."):
            above, below = (floors.index(name.split(".")[1]) for name in (importer, imported))
            assert below <= above, f"{importer} imports {imported}, which stands above it"


def test_no_imports_go_in_a_circle() -> None:
    needs: dict[str, set[str]] = {}
    for importer, imported in arrows():
        needs.setdefault(importer, set()).add(imported)
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_folders_are_small_and_files_are_neither_small_nor_large() -> None:
    for folder in {path.parent for path in modules().values()}:
        files = [path for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__")]
        folders = [path for path in folder.iterdir() if path.is_dir() and list(path.glob("*.py"))]
        if folder.relative_to(ROOT).as_posix() not in TABLES:
            assert max(len(files), len(folders)) <= 10, folder
        for path in files:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert 20 <= lines <= 300, f"{path} has {lines} lines"


def test_every_folder_says_what_it_is_for() -> None:
    """In one line, which CONTRIBUTING's map has too."""
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, path in modules().items():
        if path.stem == "__init__":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
            assert name.count(".") != 1 or f"`{name.replace('.', '/')}/`" in tree, f"CONTRIBUTING.md has no {name}"


def test_only_the_command_line_prints() -> None:
    for package in ("dgad_tk", "exporters", "evaluators"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.Name) and node.id == "print"), path


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, cli.app; "
        "print([name for name in ('torch', 'torchvision', 'art', 'onnx', 'onnxruntime', 'sklearn', 'numpy') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_help_imports_what_typer_does_and_little_more() -> None:
    """Why it answers at once: beside our own modules it takes the one that draws the page."""
    tell = "import sys; print(*{name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names)"

    def imported(code: str) -> set[str]:
        command = [sys.executable, "-c", f"{code}\n{tell}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return set(done.stdout.splitlines()[-1].split())

    by_help = imported("import cli.app; assert cli.app.run(['--help']) == 0")
    assert by_help >= {"cli", "typer"}
    assert by_help - imported("import typer") <= {"cli", "dgad_tk", "rich"}


def test_the_wheel_holds_four_packages_and_no_more(tmp_path: Path) -> None:
    copy = tmp_path / "tree"  # so that the tree itself gets no build folder
    unwanted = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "runs", "attacks", "__pycache__", ".*cache"
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == set(MAY_IMPORT)
    assert "dgad = cli.app:main" in entry_points
    assert {"dgad_tk/py.typed", "dgad_tk/config/recipes/default.yaml"} <= set(names)
