"""Memory of a process that cannot be dropped, seen from a thread of its own. Linux keeps the account."""

from pathlib import Path

import pytest

NEEDS_ACCOUNT = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")

WATCH = """
import json, re, sys, threading, time
from pathlib import Path

import numpy as np

seen = []


def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssAnon:\\s+(\\d+) kB", status, re.MULTILINE)[1]) / 1024


def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.002)
"""
"""Begins a program: `anonymous()` is in MB, and a thread that runs `watch` adds to `seen`."""
