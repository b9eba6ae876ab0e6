"""The torch module that gives the gradients of an ONNX file: the twin of its graph, for any number of images."""

from contextlib import redirect_stderr
from io import StringIO

import torch
from onnx import ModelProto, ValueInfoProto
from torch import Tensor, fx, nn

from dgad_tk.common import UserError, reason_of
from exporters.onnx_open.free_batch import InParts, free_batch
from exporters.onnx_open.image_input import ImageInput, noise
from exporters.onnx_open.readings.reading import Reading
from exporters.onnx_open.runtime_graph import precision_of, runtime_graph
from exporters.onnx_open.session import BLANK, OTHER_SIZE, Runtime
from exporters.onnx_twin import to_torch
from exporters.onnx_twin.convolutions import freeze_convolutions
from exporters.onnx_twin.trainable import make_trainable


def differentiable(
    proto: ModelProto, readings: list[Reading], runtime: Runtime, *, trainable: bool = False
) -> tuple[nn.Module, Reading, list[str]]:
    """The module that gives logits `(N, K)`, how the file is then read, and notes.

    Args:
        proto: the graph of the file. Its outputs are changed.
        readings: of its rows, the best first. The first one is taken whose value in the graph leads to the rows that
            the file gives for images of noise; the last one, from the output itself, needs no such trial.
        runtime: the file.
        trainable: the module's learned constants are parameters, and nothing in it is frozen for attacks.

    Raises:
        UserError: there is no twin of the graph, or none that can be trained.
    """
    own = readings[-1]
    images = _images(runtime.image, runtime.image.batch or BLANK)
    for reading in readings[:-1]:
        net, notes = _any_batch(proto, reading.tensor, runtime, trainable)
        with torch.no_grad():
            fitted = reading.fitted(net(images), runtime.rows(images.numpy(), own.tensor))
        if fitted is not None:
            break
    else:
        fitted = own
        net, notes = _any_batch(proto, own.tensor, runtime, trainable)
    module = fitted.head(net).to("cuda" if torch.cuda.is_available() else "cpu")
    return module, fitted, [*notes, *filter(None, [fitted.remark])]


def _any_batch(proto: ModelProto, tensor: str, runtime: Runtime, trainable: bool) -> tuple[nn.Module, list[str]]:
    """The twin of the graph up to `tensor`, for any number of images `(N, C, H, W)` in [0, 1]; notes about it."""
    image = runtime.image
    _answer_with(proto, tensor)
    # A quantised or half-precision file is run as something else than it says.
    runs = proto if precision_of(proto) == "fp32" else runtime_graph(proto)
    twin: nn.Module = to_torch(runs, folded=not trainable)
    feed, notes = image.feed(), []
    if not image.has_batch_axis:
        twin = InParts(twin, None)
    try:
        with torch.no_grad(), redirect_stderr(StringIO()):  # torch.fx prints the line of its code that fails
            logits = twin(feed(_images(image, image.batch or BLANK)))
    except (RuntimeError, ValueError, IndexError) as error:  # ONNX Runtime runs windows larger than an image, say
        raise UserError(
            f"its twin does not run on images of shape {image.shape}, which may be too small for it: "
            f"{reason_of(error)}",
            hint=OTHER_SIZE,
        ) from None
    if image.batch is not None:
        graph = runs if image.has_batch_axis else None
        twin, free = free_batch(
            graph, twin, image.batch, lambda count: feed(_images(image, count)), folded=not trainable
        )
        if not free:
            notes.append(f"gradients are computed {image.batch} at a time, which is slow: the graph is made for that")
    if trainable:
        if not isinstance(twin, fx.GraphModule):
            raise UserError(
                "its graph is made for a fixed number of images and cannot be freed of it, and training takes batches",
                hint="export it again with a free batch size, or give the weights of its network",
            )
        make_trainable(twin)
        return _whole(image, twin, logits), notes
    # Channels-last weights make the convolutions of a gradient step a fifth to a third faster on a CPU. `Module.to`
    # would refuse a graph with a constant of five axes.
    for weight in twin.buffers():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if isinstance(twin, fx.GraphModule):
        freeze_convolutions(twin)
    return _whole(image, twin, logits), notes


def _whole(image: ImageInput, twin: nn.Module, logits: Tensor) -> nn.Module:
    """The twin as a module of images, in eval mode; `logits` are what it gave for some."""
    plain = image.plain and logits.dim() == 2 and logits.dtype is torch.float32
    return (twin if plain else _Fed(image, twin)).eval()


class _Fed(nn.Module):
    """The twin of a graph, given its input as made from images. Gives float32 logits `(N, K)`."""

    def __init__(self, image: ImageInput, twin: nn.Module) -> None:
        super().__init__()
        self.feed, self.twin = image.feed(), twin

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.twin(self.feed(x))
        return logits.reshape(x.shape[0], -1).float()  # `len` would be burnt into an export


def _images(image: ImageInput, count: int) -> Tensor:
    return torch.from_numpy(noise(image.shape, count))


def _answer_with(model: ModelProto, tensor: str) -> None:
    """Make `tensor` the only output of the graph, in place."""
    kept = ValueInfoProto(name=tensor)
    for info in model.graph.output:
        if info.name == tensor:
            kept.CopyFrom(info)
    del model.graph.output[:]
    model.graph.output.append(kept)
