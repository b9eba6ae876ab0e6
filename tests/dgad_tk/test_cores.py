"""How many threads torch takes, and how long they spin: what is set, when, and where it is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgad_tk import cores
from dgad_tk.cores import SPIN_COUNT, SPINS, THREADS, WAITING, physical_cores, set_default, usable_cores, users_own

CHOSEN = (SPINS, WAITING, THREADS)
ASK = """
import json, os, sys
from pathlib import Path
{before}
from dgad_tk.cores import share_cores
os.sched_getaffinity = lambda process: set(range(8))
share_cores(root=Path({root!r}))
print(json.dumps({{name: os.environ[name] for name in {names!r} if name in os.environ}}))
"""


def limited(root: Path, quota: str) -> Path:
    """The root of a system of one core per processor, with a quota in microseconds per 100 ms."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "proc/self/mountinfo").write_text("30 23 0:26 / /cgroup rw - cgroup2 cgroup2 rw\n")
    (root / "cgroup").mkdir()
    (root / "cgroup/cpu.max").write_text(f"{quota} 100000\n")
    return root


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in CHOSEN} | variables


def shared(root: Path, before: str = "", **variables: str) -> dict[str, str]:
    """What `share_cores` makes of the environment of a new process that may run on eight cores."""
    code = ASK.format(before=before, root=str(root), names=CHOSEN)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def affine(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(number)), raising=False)


def test_threads_are_left_to_torch_where_there_is_no_quota(tmp_path: Path) -> None:
    assert shared(tmp_path) == {SPINS: str(SPIN_COUNT)}
    assert shared(limited(tmp_path, "800000")) == {SPINS: str(SPIN_COUNT)}


def test_no_more_threads_than_the_quota_has_cores_for(tmp_path: Path) -> None:
    assert shared(limited(tmp_path, "300000")) == {SPINS: str(SPIN_COUNT), THREADS: "3"}


@pytest.mark.parametrize("given", [{SPINS: "7"}, {WAITING: "ACTIVE"}, {WAITING: "PASSIVE", SPINS: "9"}])
def test_how_long_threads_spin_is_the_users_choice(given: dict[str, str], tmp_path: Path) -> None:
    assert shared(tmp_path, **given) == given


def test_the_number_of_threads_is_the_users_choice_and_torchruns(tmp_path: Path) -> None:
    assert shared(limited(tmp_path, "300000"), OMP_NUM_THREADS="1")[THREADS] == "1"


def test_after_torch_was_loaded_nothing_is_set(tmp_path: Path) -> None:
    """It would do nothing for this process, and change those that this process starts."""
    assert shared(limited(tmp_path, "300000"), before="sys.modules['torch'] = None") == {}


def test_what_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine(4, monkeypatch)
    assert usable_cores(tmp_path) == 4
    root = limited(tmp_path, "600000")
    expected = {"600000": 4, "350000": 4, "250000": 3, "150000": 2, "140000": 1, "10000": 1, "max": 4}
    for quota, threads in expected.items():
        (root / "cgroup/cpu.max").write_text(f"{quota} 100000\n")
        assert usable_cores(root) == threads, quota


def test_hardware_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine(4, monkeypatch)
    assert physical_cores(tmp_path) == 4  # nothing is known
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert physical_cores(tmp_path) == 2
    affine(2, monkeypatch)
    assert physical_cores(tmp_path) == 2


def test_systems_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert (usable_cores(tmp_path), physical_cores(tmp_path)) == (6, 6)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_defaults_give_way_to_later_ones_and_not_to_processes_that_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cores, "_defaults", {})
    variables = {"A": "the user's"}
    for name in ("A", "B", "C"):
        set_default(name, "first", variables)
        set_default(name, "second", variables)
    assert variables == {"A": "the user's", "B": "second", "C": "second"}
    variables["C"] = "set since"
    with pytest.raises(ZeroDivisionError), users_own(variables):
        assert variables == {"A": "the user's", "C": "set since"}
        raise ZeroDivisionError
    assert variables == {"A": "the user's", "B": "second", "C": "set since"}


@pytest.mark.skipif(sys.platform != "linux", reason="torch has libgomp on Linux only")
@pytest.mark.parametrize("given", [{}, {SPINS: "123"}])
def test_torchs_openmp_has_read_it_when_a_command_runs(given: dict[str, str]) -> None:
    """OMP_DISPLAY_ENV has libgomp print its settings when it is loaded."""
    command = [sys.executable, "-m", "cli", "list", "methods"]
    variables = environment(OMP_DISPLAY_ENV="VERBOSE", **given)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert f"{SPINS} = '{given.get(SPINS, SPIN_COUNT)}'" in done.stderr
