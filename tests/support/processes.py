"""Processes of their own for training runs, forked from a server that has done the slow imports already."""

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dgad_tk.common import UserError

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("dgad_tk.training.train", "sklearn.datasets.data", "torch._dynamo", "pytest"),  # of training runs
        *("evaluators.engine.evaluate", "evaluators.report.files", "evaluators.report.evaluation.page"),  # of attacks
        *("exporters.formats", "cli.app", "torch.fx.experimental.symbolic_shapes"),
    ]
)
PATIENCE = 240


class Child:
    """A call of `job` in another process.

    Args:
        job: a function of a module, with arguments that can be pickled.
    """

    def __init__(self, job: Callable[..., Any], *arguments: Any) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_call, args=(theirs, job, arguments), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.poll(PATIENCE)
        assert self.pipe.recv() == "begun"

    def ends_within(self, seconds: float) -> bool:
        return self.pipe.poll(seconds)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def outcome(self) -> tuple[str, Any]:
        """`done` with the result, `refused` with a UserError's text, `interrupted`, `failed` or `killed`."""
        try:
            if not self.pipe.poll(PATIENCE):
                self.kill()
                raise TimeoutError
            found = pickle.loads(self.pipe.recv())
        except (EOFError, ConnectionResetError):
            found = ("killed", None)
        self.process.join()
        self.pipe.close()
        return found

    def result(self) -> Any:
        how, what = self.outcome()
        assert how == "done", f"{how}: {what}"
        return what


def _call(pipe: Connection, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    pipe.send("begun")
    try:
        answer = ("done", job(*arguments))
    except UserError as error:
        answer = ("refused", str(error))
    except KeyboardInterrupt:
        answer = ("interrupted", None)
    except BaseException:  # noqa: BLE001 - it is told to the test
        answer = ("failed", traceback.format_exc())
    with suppress(BrokenPipeError):
        pipe.send(pickle.dumps(answer))  # by value: torch would send tensors in memory that ends with the process


def together(size: int, job: Callable[..., Any], *arguments: Any) -> list[Child]:
    """`job` in as many processes as torchrun would have started, with the environment that it gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Child(_launched, rank, size, port, job, arguments) for rank in range(size)]


def _launched(rank: int, size: int, port: int, job: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return job(*arguments)


def met(job: Callable[..., Any], *arguments: Any) -> Any:
    """A job of `together`, with the processes joined for all of it."""
    dist.init_process_group("gloo")
    try:
        return job(*arguments)
    finally:
        dist.destroy_process_group()


def writes_below(folder: Path) -> list[str]:
    """What this process changes below `folder` from now on, in a list that grows."""
    found: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writing or event in ("os.mkdir", "os.rename", "os.remove")) and str(arguments[0]).startswith(str(folder)):
            found.append(f"{event} {arguments[0]}")

    sys.addaudithook(note)
    return found
