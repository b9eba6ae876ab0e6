"""When the brake is put on and taken off, and that libgomp's threads sleep while it is on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from dgad_tk.cores import allowed_cores
from dgad_tk.spinning import CALM, CROWDED, FREE, Brake, second_team, waited, watch

SLEEPS = """
import json, os, time
from pathlib import Path
import torch
from dgad_tk.spinning import second_team

def sleeps():  # of all threads but this one
    others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    lines = [line for task in others for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))

def rounds(times=50):  # operators in all threads, and a pause after each in which the others wait for the next
    numbers = torch.zeros(2**15 * torch.get_num_threads())
    numbers.add_(1)
    time.sleep(0.5)
    before = sleeps()
    for _ in range(times):
        numbers.add_(1)
        time.sleep(0.002)
    return sleeps() - before

free = rounds()
dismiss = second_team()
time.sleep(0.5)
braked = rounds()
dismiss()
time.sleep(0.5)
print(json.dumps([free, braked, rounds()]))
"""


def task(folder: Path, name: str, schedstat: str) -> None:
    (folder / name).mkdir()
    (folder / name / "schedstat").write_text(schedstat)


def test_what_all_threads_waited(tmp_path: Path) -> None:
    task(tmp_path, "1", "900 1500000000 7\n")
    task(tmp_path, "2", "900 250000000 7\n")
    assert waited(tmp_path) == 1.75
    task(tmp_path, "3", "")  # ended while it was read
    (tmp_path / "4").mkdir()
    assert waited(tmp_path) == 1.75


def test_systems_that_do_not_tell(tmp_path: Path) -> None:
    assert waited(tmp_path / "missing") is None
    assert watch(tmp_path / "missing") is None
    (tmp_path / "1").mkdir()
    assert waited(tmp_path) is None


def test_where_no_more_threads_may_be_started_work_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container has a number of processes at most; at the end of a process Python starts none."""

    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("5 7000000000 3\n")
    assert waited(tmp_path) == 7.0
    monkeypatch.setattr(Thread, "start", refuse)
    assert watch(tmp_path) is None
    second_team()()


def test_the_brake_is_on_while_it_is_crowded() -> None:
    done: list[str] = []

    def make() -> object:
        done.append("made")
        return lambda: done.append("dismissed")

    brake = Brake(make)  # type: ignore[arg-type]
    brake.look(CROWDED - 0.01, 1.0)
    assert not brake.on
    for moment in (2.0, 3.0):
        brake.look(CROWDED + 0.01, moment)
        assert brake.on
    brake.look(FREE + 0.01, 4.0)
    brake.look(0.0, 4.0 + CALM)
    assert brake.on
    brake.look(0.0, 4.1 + CALM)
    assert not brake.on
    assert done == ["made", "dismissed"]
    brake.look(1.0, 20.0)
    assert done == ["made", "dismissed", "made"]


@pytest.mark.skipif(sys.platform != "linux" or allowed_cores() < 2, reason="needs libgomp and two cores")
def test_threads_of_libgomp_sleep_between_operators_while_the_brake_is_on() -> None:
    """Without it they spin through the pauses, for as long as the variable says."""
    variables = os.environ | {"GOMP_SPINCOUNT": "INFINITE", "OMP_NUM_THREADS": str(allowed_cores())}
    variables.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run([sys.executable, "-c", SLEEPS], env=variables, capture_output=True, text=True, check=True)
    free, braked, after = json.loads(done.stdout)
    assert braked >= 40
    assert max(free, after) < 20


ENDS = """
import torch
from dgad_tk.spinning import second_team
teams = [second_team() for _ in range(30)]
"""


def test_a_process_may_end_while_a_team_is_made() -> None:
    """As on a busy machine, where a command that ends soon has just loaded torch."""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
