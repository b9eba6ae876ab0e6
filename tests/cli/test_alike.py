"""The embedded digits are trained by what x86 processors have in common: what is set, when, and where it is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.commands.alike import ALIKE

ASK = """
import json, os, sys
from pathlib import Path
{before}
from cli.commands.alike import ALIKE, compute_alike
compute_alike(Path({cpu!r}))
print(json.dumps({{name: os.environ.get(name) for name in ALIKE}}))
"""


def asked(cpu: Path, before: str = "", **variables: str) -> dict[str, str | None]:
    environment = {name: value for name, value in os.environ.items() if name not in ALIKE} | variables
    code = ASK.format(before=before, cpu=str(cpu))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@pytest.fixture
def cpu(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu sse4_1 fma avx avx2 avx512f\nprocessor\t: 1\n")
    return path


def test_a_processor_that_can_computes_as_others_do(cpu: Path) -> None:
    assert asked(cpu) == ALIKE


def test_what_the_user_has_set_stays(cpu: Path) -> None:
    assert asked(cpu, OMP_NUM_THREADS="7") == ALIKE | {"OMP_NUM_THREADS": "7"}


@pytest.mark.parametrize("flags", ["flags\t: fpu sse4_1 avx", "Features\t: fp asimd", ""])
def test_other_processors_are_left_alone(flags: str, tmp_path: Path) -> None:
    """Torch would end the process at the first instruction that is not there."""
    (tmp_path / "other").write_text(flags)
    assert set(asked(tmp_path / "other").values()) == {None}
    assert set(asked(tmp_path / "missing").values()) == {None}


def test_torch_that_is_loaded_already_is_left_alone(cpu: Path) -> None:
    assert set(asked(cpu, before="sys.modules['torch'] = None").values()) == {None}


def test_the_settings_of_a_run_are_known_before_torch_is_loaded() -> None:
    code = (
        "import sys; from cli.commands.train import _configured; "
        "config, _ = _configured({}, None, ['dgad.pcr_weight=3'], None, False); "
        "assert config.dataset == 'digits'; assert 'torch' not in sys.modules, 'torch is loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_imports_torch_before_the_processor_is_chosen(tmp_path: Path) -> None:
    """torch reads what makes digits alike on every machine once, when it is loaded."""
    program = (
        "import sys\n"
        "from cli.app import run\n"
        "from cli.commands import train\n"
        "def chosen():\n"
        "    raise SystemExit('late' if 'torch' in sys.modules else 'in time')\n"
        "train.compute_alike = chosen\n"
        f"run(['train', '--out', {str(tmp_path / 'run')!r}, '--student', 'resnet8'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("in time"), done.stderr
