"""The script for people with a card: that it says where there is none."""

import os
import subprocess
import sys

from shared import ROOT


def test_without_a_card_one_line_says_so() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("no card: ")
    assert done.stderr.count("\n") == 1
