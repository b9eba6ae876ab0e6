"""One model file in a process of its own, timed on request: `latency.py` asks and this answers.

A file is opened as it would be deployed: ONNX Runtime with its default optimisation, threads that spin as long as the
libraries let them, and no differentiable twin. (`exporters.formats.load` builds a twin and keeps the threads from
spinning, for attacks.) The process of an ONNX file imports no torch, so that its memory is the runtime's.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import UserError, reason_of

Predict = Callable[[NDArray[Any]], object]
"""A batch in the host's memory to its logits in the host's memory."""
Request = tuple[int, float | None]
"""A batch size, and for how many seconds to time calls with it; None only warms it up."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
WARM_UP = 4
"""Calls before the first timing: ONNX Runtime plans its memory in the first, TorchScript compiles by the third."""
HINTS = {
    "cpu": "export it again",
    "cuda": "cuda takes an NVIDIA GPU, its driver and the CUDA builds of the runtimes; --provider cpu takes nothing",
}


@dataclass(frozen=True)
class Job:
    """The file that a process times, and how.

    Attributes:
        path, sample, dtype, has_batch_axis: of a `Subject`.
        provider: row of PROVIDERS.
        threads: of the runtime's pool inside an operator.
    """

    path: str
    sample: tuple[int, ...]
    dtype: str
    has_batch_axis: bool = True
    provider: str = "cpu"
    threads: int = 1

    @property
    def is_onnx(self) -> bool:
        return self.path.endswith(".onnx")

    def noise(self, batch: int) -> NDArray[Any]:
        """Uniform in [0, 1]; for integers in 0..255, for int8 in -128..127."""
        dtype = np.dtype(self.dtype)
        shape = (batch, *self.sample) if self.has_batch_axis else self.sample
        values = np.random.default_rng(0).random(shape, dtype=np.float32)
        if dtype.kind in "iu":
            values = values * 255 - (128 if dtype == np.int8 else 0)
        return values.astype(dtype)


def open_onnx(job: Job) -> tuple[Predict, str]:
    """What runs the file as a deployment would, and the name of its runtime.

    Raises:
        UserError: ONNX Runtime cannot load the file, or would run it on another provider than asked for.
    """
    import onnxruntime

    from exporters.onnx_read.runtime_memory import session_options

    wanted = PROVIDERS[job.provider]
    onnxruntime.set_default_logger_severity(4)
    try:
        if wanted not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this build has no {wanted}")
        options = session_options(threads=job.threads)
        session = onnxruntime.InferenceSession(job.path, options, providers=[wanted], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        raise UserError(
            f"ONNX Runtime cannot open '{job.path}' on {job.provider}: {reason_of(error)}", hint=HINTS[job.provider]
        ) from None
    _check_device(job, session.get_providers()[0], wanted)
    name = session.get_inputs()[0].name
    return (lambda batch: session.run(None, {name: batch})), f"onnxruntime {onnxruntime.__version__} {wanted}"


def open_torch(job: Job) -> tuple[Predict, str]:
    """The same for a torch format, which `exporters.formats.load` opens as a deployment would.

    Raises:
        UserError: the file cannot be opened, or torch would run it on another provider than asked for.
    """
    import torch

    from exporters.formats import load

    torch.set_num_threads(job.threads)
    channels, height, width = job.sample
    predictor = load(Path(job.path), (channels, height, width), trust=True)  # `describe` has asked for it
    _check_device(job, predictor.runtime, job.provider)
    return predictor.predict, predictor.runtime


def _check_device(job: Job, found: str, wanted: str) -> None:
    if not found.endswith(wanted):
        raise UserError(f"'{job.path}' would run on {found}, not on {wanted}", hint=HINTS[job.provider])


def timed(call: Predict, batch: NDArray[Any], seconds: float) -> list[float]:
    """Seconds of each call during about `seconds`.

    The first call finds the caches that other processes left, so it counts only if it takes all the time alone.
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


def serve(connection: Connection, job: Job) -> None:
    """Answer the requests that come, in a process of its own, until there are no more or the file fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks, which ends this one
    os.dup2(2, 1)  # what libraries print is no result
    if job.provider == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch formats go to a GPU if there is one
    try:
        for answer in answers(job, iter(connection.recv, None)):
            connection.send(answer)
    except UserError as error:
        connection.send(error)
    except (EOFError, ConnectionError):
        return  # nobody asks any more


def answers(job: Job, requests: Iterator[Request]) -> Iterator[str | int | list[float] | None]:
    """The name of the runtime that opened the file, then an answer to each request.

    A request for no seconds warms a batch size up; the answer is the largest memory so far in bytes, None off Linux.
    The answer to another one is the seconds of each call.

    Raises:
        UserError: the file does not open, or does not run at a batch size.
    """
    if not job.is_onnx:  # before memory is first looked at
        import exporters.formats  # noqa: F401
    else:
        import onnxruntime  # noqa: F401

        if job.provider == "cuda":
            import torch  # noqa: F401 - loads the CUDA libraries that ONNX Runtime then finds
    baseline = _memory_at_most(reset=True)
    call, runtime = open_onnx(job) if job.is_onnx else open_torch(job)
    yield runtime
    batches: dict[int, NDArray[Any]] = {}
    for size, seconds in requests:
        if seconds is not None:
            yield timed(call, batches[size], seconds)
            continue
        batches[size] = job.noise(size)
        warm_up(call, batches[size], job.path)
        yield None if baseline is None else (_memory_at_most() or 0) - baseline


def _memory_at_most(*, reset: bool = False) -> int | None:
    """The largest resident memory in bytes since the last reset; None off Linux."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def warm_up(call: Predict, batch: NDArray[Any], path: str) -> None:
    """
    Raises:
        UserError: the file does not take this batch.
    """
    try:
        for _ in range(WARM_UP):
            call(batch)
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises
        raise UserError(
            f"'{path}' does not run at batch {len(batch)}: {reason_of(error)}", hint="ask for other sizes with --batch"
        ) from None
