"""One model file in a process of its own, timed on request: `latency.py` asks and this answers, a line of JSON each.

It is run as a file and not with -m: importing the package `exporters` brings torch along, which has no place in the
process of an ONNX Runtime whose start and memory are measured. What is opened is what would be deployed: ONNX Runtime
with its default optimisation and its threads spinning, and no differentiable twin (`exporters.load` builds one, and
keeps the threads from spinning, for attacks).
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import UserError, reason_of

Call = Callable[[NDArray[Any]], object]
"""A batch in the host's memory to its logits in the host's memory."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
WARM_UP = 4
"""Calls before the first timing: ONNX Runtime plans its memory in the first, TorchScript compiles by the third."""


def open_onnx(path: Path, threads: int, provider: str) -> tuple[Call, str]:
    """A session as a deployment would have it, and its runtime's name.

    Raises:
        UserError: ONNX Runtime cannot load the file, or would run it elsewhere than on `provider`.
    """
    import onnxruntime

    wanted = PROVIDERS[provider]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is said by the exception too
    onnxruntime.set_default_logger_severity(4)
    try:
        if wanted not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this build has no {wanted}")
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        raise UserError(
            f"ONNX Runtime cannot open '{path}' on {provider}: {reason_of(error)}", hint=_hint(provider)
        ) from None
    if session.get_providers()[0] != wanted:
        raise UserError(
            f"'{path}' would run on {session.get_providers()[0]}, not on the {wanted} asked for", hint=_hint(provider)
        )
    name = session.get_inputs()[0].name
    return (lambda batch: session.run(None, {name: batch})), f"onnxruntime {onnxruntime.__version__} {wanted}"


def open_torch(path: Path, threads: int, provider: str, sample: tuple[int, ...]) -> tuple[Call, str]:
    """A torch format as `exporters.load` opens it: nothing there but the deployed module.

    Raises:
        UserError: the file cannot be opened, or torch would run it elsewhere than on `provider`.
    """
    import torch

    from exporters import load

    torch.set_num_threads(threads)
    channels, height, width = sample
    predictor = load(path, (channels, height, width))
    if predictor.runtime.split()[-1] != provider:
        raise UserError(f"'{path}' would run on {predictor.runtime}, not on {provider}", hint=_hint(provider))
    return predictor.predict, predictor.runtime


def noise(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Uniform in [0, 1], for a model that takes integers in 0..255, or in -128..127 where it takes eight bits with a
    sign."""
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    if dtype.kind in "iu":
        values = values * 255 - (128 if dtype == np.int8 else 0)
    return values.astype(dtype)


def timed(call: Call, batch: NDArray[Any], seconds: float) -> list[float]:
    """Seconds of each call during about `seconds`.

    The first call finds the caches that other processes left, so it counts only where it alone takes all the time.
    """

    def once() -> float:
        begun = time.perf_counter()
        call(batch)
        return time.perf_counter() - begun

    begun, first = time.perf_counter(), once()
    if first >= seconds:
        return [first]
    times = [once()]
    while time.perf_counter() - begun < seconds:
        times.append(once())
    return times


def reset_high_water() -> bool:
    """Make this moment's resident memory the high-water mark; False where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS now, VmHWM at most since the reset."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def serve(requests: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Open the file that the first request names, then warm up and time whatever the next ones ask for."""
    asked = json.loads(next(requests))
    path, provider, threads = Path(asked["path"]), asked["provider"], asked["threads"]
    sample, dtype = tuple(asked["sample"]), np.dtype(asked["dtype"])
    onnx = path.suffix == ".onnx"
    if onnx:
        import onnxruntime  # noqa: F401 - before the baseline

        if provider == "cuda":
            import torch  # noqa: F401 - loads the CUDA libraries that ONNX Runtime then finds
    else:
        import exporters  # noqa: F401
    baseline = memory("VmRSS") if reset_high_water() else None
    try:
        call, runtime = open_onnx(path, threads, provider) if onnx else open_torch(path, threads, provider, sample)
        answer({"runtime": runtime})
        batches: dict[int, NDArray[Any]] = {}
        for line in requests:
            request = json.loads(line)
            size = request["batch"]
            if "seconds" in request:
                answer({"seconds": timed(call, batches[size], request["seconds"])})
                continue
            batches[size] = noise((size, *sample) if asked.get("has_batch_axis", True) else sample, dtype)
            _warm_up(call, batches[size], path)
            answer({"peak_memory_bytes": None if baseline is None else memory("VmHWM") - baseline})
    except UserError as error:
        answer({"error": error.message, "hint": error.hint})


def _warm_up(call: Call, batch: NDArray[Any], path: Path) -> None:
    try:
        for _ in range(WARM_UP):
            call(batch)
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises, the file does not take this batch
        raise UserError(
            f"'{path}' does not run at batch {len(batch)}: {reason_of(error)}", hint="ask for other sizes with --batch"
        ) from None


def _hint(provider: str) -> str:
    if provider == "cuda":
        return "cuda takes an NVIDIA GPU, its driver and the CUDA builds of the runtimes; --provider cpu takes nothing"
    return "export it again"


def main() -> None:
    """Serve stdin and stdout until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(content: dict[str, Any]) -> None:
        channel.write(json.dumps(content) + "\n")
        channel.flush()

    serve(sys.stdin, answer)


if __name__ == "__main__":
    main()
