"""TensorBoard events beside metrics.jsonl, where the extra `dgad-tk[tensorboard]` is installed."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Note = Callable[[Mapping[str, float], int], None]
"""Takes an epoch's metrics and how many epochs are done."""


@contextmanager
def open_events(folder: Path, epoch: int, wanted: bool) -> Iterator[Note]:
    """Write each metric as a scalar into `folder`, if TensorBoard is installed.

    Args:
        epoch: where the run goes on. TensorBoard drops what an interrupted run wrote about this epoch and later ones.
        wanted: False writes nothing.
    """
    if not wanted or importlib.util.find_spec("tensorboard") is None:
        yield lambda metrics, done: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=epoch + 1) as writer:

        def note(metrics: Mapping[str, float], done: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, done)

        yield note
