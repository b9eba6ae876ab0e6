"""What is known of a processor's bfloat16."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from evaluators.target.precision import multiplies_bf16


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="instruction sets of x86")
def test_a_processor_without_units_is_known() -> None:
    code = "import torch; from evaluators.target.precision import multiplies_bf16 as m; print(m(torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "False"


def test_what_this_processor_has() -> None:
    """Linux lists the instructions that a processor has."""
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    if "flags\t" not in text or "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("not x86, or told to be another")
    assert multiplies_bf16(torch.device("cpu")) == ("avx512_bf16" in text or "amx_bf16" in text)
