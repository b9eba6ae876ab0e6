"""Part `resume`: a run that is killed and resumed on the card ends with the weights of one that was not."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from card.common import ROOT

START = (
    "import sys, torch; torch.use_deterministic_algorithms(True, warn_only=True); "
    "from cli.app import main; sys.argv[0] = 'dgad'; main()"
)
"""`dgad`, with kernels that repeat themselves where torch has them."""


def resume(options: argparse.Namespace) -> None:
    """Two runs are left alone and one is killed by SIGKILL in an epoch, all at the same time."""
    folder = options.out.resolve() / f"resume-{int(time.time())}"
    folder.mkdir()
    net, epochs = ("resnet8", 4) if options.cpu else ("resnet18", 8)
    flags = ["--student", net, "--teacher-model", "resnet8", "--teacher-epochs", "1", "--epochs", str(epochs)]
    flags += ["--set", f"select_every={epochs}", "--set", "checkpoint_minutes=0.005", "--quiet"]
    flags += ["--limit-train", "400"] if options.cpu else ["--precision", "bf16", "--set", "cuda_graph=true"]
    started = {name: start(["train", *flags, "--out", name], folder) for name in ("one", "another", "killed")}
    when = kill(started["killed"], folder / "killed", options)
    ended = {name: started[name].wait() for name in ("one", "another")}
    ended["resumed"] = start(["train", "--resume", "killed", "--quiet"], folder).wait()
    for name, code in ended.items():
        if code:
            print(f"the run '{name}' ended with {code}", file=sys.stderr)
            sys.exit(1)
    one, another, killed = (load_file(folder / name / "best.safetensors") for name in ("one", "another", "killed"))
    own, resumed = (
        max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
        for other in (another, killed)
    )
    equal = "equal to those of a run that was not, bit for bit"
    print(
        f"DGAD into `{net}` on the digits, {epochs} epochs, killed by SIGKILL {when} and resumed: weights "
        + (equal if resumed == 0 else f"apart by at most {resumed:.1e} from those of a run that was not")
        + (f" (two runs that nobody killed: {own:.1e})" if own else " (two runs that nobody killed: equal)")
        + ".\n"
    )
    if resumed > 0 and own == 0:
        print("runs repeat themselves here, and the resumed one differs", file=sys.stderr)
        sys.exit(1)


def start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", START, *arguments], cwd=folder, env=environment)


def kill(run: "subprocess.Popen[bytes]", folder: Path, options: argparse.Namespace) -> str:
    """Kill the run once it has written several checkpoints of the student; when that was, in words."""
    from dgad_tk.artifacts.runs import RunFolder

    last, seen, stamp = RunFolder(folder).last, 0, 0
    while run.poll() is None:
        if last.is_file() and (now := last.stat().st_mtime_ns) != stamp:
            seen, stamp = seen + 1, now
            if seen == 3:
                break
        time.sleep(0.01)
    if run.poll() is not None:
        print(f"the run ended with {run.returncode} before it could be killed", file=sys.stderr)
        sys.exit(1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    lines = len((folder / "metrics.jsonl").read_text().splitlines()) if (folder / "metrics.jsonl").is_file() else 0
    return f"after {seen} checkpoints, in epoch {lines + 1}"
