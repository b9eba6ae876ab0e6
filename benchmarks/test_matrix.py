"""The tests as other processors compute them: vector units are held back, threads and order changed.

    python benchmarks/test_matrix.py              # all tests in all settings: an hour or so on two cores
    python benchmarks/test_matrix.py --portable   # `make test-portable`: tests that rounding reaches, in three settings

Prints what failed in which setting, and exits with 1 if anything did. ONNX Runtime has no variable for its vector unit
and computes by the machine's own.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from dgad_tk.cores import usable_cores

ROOT = Path(__file__).parent.parent
LEVELS = {"default": 0, "avx2": 1, "avx512": 2}
"""Vector units that ATEN_CPU_CAPABILITY names. Torch does not check it: with one that is not there the process ends."""
NUMPY = {"default": ("COMPATIBLE", "Nehalem"), "avx2": ("AVX2", "Haswell"), "avx512": ("AVX512", "SkylakeX")}
"""The same as MKL_CBWR, for torch's matrix products, and as OPENBLAS_CORETYPE, for NumPy's."""


@dataclass(frozen=True)
class Setting:
    """One way of computing.

    Attributes:
        onednn: the best instructions that oneDNN may use (convolutions); "" is the machine's best.
        torch: the same for torch's own kernels and the libraries under it.
        threads: of torch in a process.
        shuffle: seed of the order of tests; 0 is the order of the files.
    """

    onednn: str = ""
    torch: str = ""
    threads: int = 1
    shuffle: int = 0

    @property
    def variables(self) -> dict[str, str]:
        found = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait use no core
        if self.onednn:
            found["ONEDNN_MAX_CPU_ISA"] = self.onednn
        if self.torch and LEVELS[self.torch] <= LEVELS.get(torch.backends.cpu.get_cpu_capability().lower(), 0):
            found["ATEN_CPU_CAPABILITY"] = self.torch
            found["MKL_CBWR"], found["OPENBLAS_CORETYPE"] = NUMPY[self.torch]
        return found

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.variables.items() if name != "OMP_WAIT_POLICY"]
        return " ".join([*words, f"--shuffle {self.shuffle}"] if self.shuffle else words)


PORTABLE = (
    Setting("SSE41", "default", shuffle=1),
    Setting("AVX2", "avx2", threads=2, shuffle=2),
    Setting("AVX512_CORE", "avx512", shuffle=3),
)
ALL = (Setting(), *PORTABLE, Setting(torch="default"), Setting("SSE41", "avx2", threads=2))


def run(setting: Setting, chosen: list[str]) -> tuple[list[str], str]:
    """Tests that fail, and pytest's last line; what went wrong is printed as it is."""
    processes = max(1, usable_cores() // setting.threads)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-n", str(processes), "-p", "no:cacheprovider"]
    command += ["--shuffle", str(setting.shuffle), *chosen]
    environment = {**os.environ, **setting.variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode:
        print(done.stdout)
        failed = failed or ["the tests did not run"]
    return failed, (done.stdout.strip().splitlines() or [""])[-1].strip("= ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portable", action="store_true", help="tests marked `portable`, in three settings")
    arguments, more = parser.parse_known_args()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}", flush=True)
    lines, broken = [], []
    for setting in PORTABLE if arguments.portable else ALL:
        failed, summary = run(setting, [*(["-m", "portable and not slow"] if arguments.portable else []), *more])
        lines += [f"| {setting} | {summary} | {' '.join(failed) or 'nothing'} |"]
        broken += [str(setting)] if failed else []
        print(lines[-1], flush=True)
    print("\n| setting | tests | failed |\n|---|---|---|", *lines, sep="\n")
    for setting_name in broken:
        print(f"FAILED in the setting: {setting_name}", file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
