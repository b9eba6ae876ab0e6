"""The embedded digits are trained by what x86 processors with AVX2 have in common, so that the README's table is
reproducible. That was seen with other instruction sets imitated; libraries may also go by the size of a cache.

Kernels for other vector units, and other numbers of threads, sum in another order. That is a last bit of one gradient,
and after some thousand steps of adversarial training another network, of which attacks break some images more or fewer.
"""

import os
import sys
from pathlib import Path

ALIKE_DATASETS = ("digits",)
"""Small enough for two threads and half the vector unit; on others a machine's own speed counts for more."""

ALIKE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "MKL_CBWR": "COMPATIBLE",  # matrix products, on Intel's processors and on others
    "OMP_NUM_THREADS": "2",
}
_NEEDED = {"avx2", "fma"}


def compute_alike(cpu: Path = Path("/proc/cpuinfo")) -> None:
    """Have torch compute as any processor with AVX2 would, in two threads. What the user has set stays.

    Only before torch is loaded, and where the system says that the processor can: torch does not ask.
    """
    if "torch" in sys.modules or not cpu.is_file():
        return
    lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    if set(flags) >= _NEEDED:
        for name, value in ALIKE.items():
            os.environ.setdefault(name, value)
