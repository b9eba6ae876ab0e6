"""What the tree promises: imports point one way, the wheel has four packages, the command starts light."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from shared import ROOT

MAY_IMPORT = {
    "dgad_tk": set(),
    "exporters": {"dgad_tk"},
    "evaluators": {"dgad_tk"},
    "cli": {"dgad_tk", "exporters", "evaluators"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    allowed, found = MAY_IMPORT[package] | {package}, 0
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [node.module or ""]
            for name in names:
                found += 1
                top = name.split(".")[0]
                assert top not in MAY_IMPORT or top in allowed, f"{path} imports {name}"
    assert found > 5


def test_a_format_is_imported_from_where_it_stands() -> None:
    """The process that times an ONNX file imports `exporters` and has to stay without torch."""
    body = ast.parse((ROOT / "exporters" / "__init__.py").read_text(encoding="utf-8")).body
    assert [type(each) for each in body] == [ast.Expr]


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
