"""Training on the embedded digits computes as every x86 processor with AVX2 does, so that the README's table can be
reproduced. Other instruction sets were imitated to see that; libraries may also decide by the size of a cache.

Kernels for other vector units, and other numbers of threads, sum in another order. That changes the last bit of one
gradient, and after some thousand steps of adversarial training it is another network, of which attacks break a few
images more or fewer.
"""

import sys
from pathlib import Path

from dgad_tk.cores import set_default

ALIKE_DATASETS = ("digits",)
"""Two threads and half the vector unit are enough for these. On others the machine's full speed matters more."""

ALIKE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "MKL_CBWR": "COMPATIBLE",  # matrix products, on Intel's processors and on others
    "OMP_NUM_THREADS": "2",
}
_NEEDED = {"avx2", "fma"}


def compute_alike(cpu: Path = Path("/proc/cpuinfo")) -> None:
    """Have torch compute as any processor with AVX2 would, in two threads. Variables that the user has set stay.

    It works only before torch is loaded. Torch would crash on a processor without AVX2, so the system is asked first.
    A quota of less than two cores changes nothing: it would make another network.
    """
    if "torch" in sys.modules or not cpu.is_file():
        return
    lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    if set(flags) >= _NEEDED:
        for name, value in ALIKE.items():
            set_default(name, value)
