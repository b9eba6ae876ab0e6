"""One model file in a process of its own, timed on request: `latency.py` asks and this answers.

What is opened is what would be deployed: ONNX Runtime with its default optimisation and its threads spinning, and no
differentiable twin (`exporters.formats.load` builds one, and keeps the threads from spinning, for attacks). The process
of an ONNX file imports no torch, so that its memory is the runtime's.
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

Call = Callable[[NDArray[Any]], object]
"""A batch in the host's memory to its logits in the host's memory."""

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
        path: of a file that `describe` has opened.
        sample: shape of one image as the file takes it, without the batch.
        dtype: of its input.
        has_batch_axis: False where the file takes one image as it is, without an axis that counts images.
        provider: row of PROVIDERS.
        threads: of the runtime's pool inside an operator.
    """

    path: str
    sample: tuple[int, ...]
    dtype: str
    has_batch_axis: bool = True
    provider: str = "cpu"
    threads: int = 1

    def open(self) -> tuple[Call, str]:
        """What runs the file, and its runtime's name. Errors as for `open_onnx`."""
        return open_onnx(self) if self.path.endswith(".onnx") else open_torch(self)

    def noise(self, batch: int) -> NDArray[Any]:
        """Uniform in [0, 1]; in 0..255 for a model that takes integers, in -128..127 for signed ones of eight bits."""
        dtype = np.dtype(self.dtype)
        shape = (batch, *self.sample) if self.has_batch_axis else self.sample
        values = np.random.default_rng(0).random(shape, dtype=np.float32)
        if dtype.kind in "iu":
            values = values * 255 - (128 if dtype == np.int8 else 0)
        return values.astype(dtype)


def open_onnx(job: Job) -> tuple[Call, str]:
    """A session as a deployment would have it, and its runtime's name.

    Raises:
        UserError: ONNX Runtime cannot load the file, or would run it elsewhere than on the provider asked for.
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


def open_torch(job: Job) -> tuple[Call, str]:
    """A torch format as `exporters.formats.load` opens it: nothing there but the deployed module.

    Raises:
        UserError: the file cannot be opened, or torch would run it elsewhere than on the provider asked for.
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


def _reset_high_water() -> bool:
    """Make this moment's resident memory the high-water mark; False where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS now, VmHWM at most since the reset."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@dataclass(frozen=True)
class Request:
    """To time calls with a batch of this size for so many seconds; None only warms it up."""

    batch: int
    seconds: float | None = None


def serve(connection: Connection, job: Job) -> None:
    """Answer the requests that come, in a process of its own, until there are no more or the file fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks, which ends this one
    os.dup2(2, 1)  # what libraries print is no result
    if job.provider == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch formats go to a GPU where there is one
    try:
        for answer in answers(job, iter(connection.recv, None)):
            connection.send(answer)
    except UserError as error:
        connection.send(error)
    except (EOFError, ConnectionError):
        return  # nobody asks any more


def answers(job: Job, requests: Iterator[Request]) -> Iterator[str | int | list[float] | None]:
    """The name of the runtime that opened the file, then an answer to each request.

    It is the largest memory so far in bytes for one that warms up, None where the system does not say, and the seconds
    of each call for one that times.

    Raises:
        UserError: the file does not open, or does not run at a batch size.
    """
    _import_runtime(job)
    baseline = _memory("VmRSS") if _reset_high_water() else None
    call, runtime = job.open()
    yield runtime
    batches: dict[int, NDArray[Any]] = {}
    for request in requests:
        if request.seconds is not None:
            yield timed(call, batches[request.batch], request.seconds)
            continue
        batches[request.batch] = job.noise(request.batch)
        warm_up(call, batches[request.batch], job.path)
        yield None if baseline is None else _memory("VmHWM") - baseline


def _import_runtime(job: Job) -> None:
    """Before memory is first looked at."""
    if not job.path.endswith(".onnx"):
        import exporters.formats  # noqa: F401

        return
    import onnxruntime  # noqa: F401

    if job.provider == "cuda":
        import torch  # noqa: F401 - loads the CUDA libraries that ONNX Runtime then finds


def warm_up(call: Call, batch: NDArray[Any], path: str) -> None:
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
