"""What a measurement was made on, and with which code."""

import hashlib
import os
import platform
import re
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "dgad_tk", "evaluators", "exporters")


def processor() -> str:
    """The CPU's name, which Python itself tells only on some systems."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def machine() -> dict[str, str | int]:
    """The hardware as far as it decides figures and times: processor, cores, threads of torch, system, GPU."""
    found: dict[str, str | int] = {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


@cache
def code_sha256() -> str:
    """SHA-256 of the four packages' own source files, by name and content: two runs of equal code agree in it."""
    total = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        total.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
