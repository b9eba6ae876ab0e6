"""ONNX files, opened: ONNX Runtime predicts, and a differentiable twin of the graph gives gradients.

A file whose input is uint8 `(1, 224, 224, 3)` and whose graph ends in `Reshape(x, [1, -1]) -> Gemm -> Softmax` becomes
a Predictor like this:

    read_onnx     its bytes become a graph that is safe to open (`onnx_read.read`)
    open_session  ONNX Runtime loads the file
    image_inputs  its one input is an image (H, W, C), in numbers from 0 to 255
    tried         it answers blank images, one at a time
    find_logits   its one output `(1, 1000)` holds a row per image
    find_squash   that row comes from a Softmax, of the output of Gemm
    to_torch      the twin of the graph up to Gemm
    free_batch    the twin with `Reshape(x, [-1, 2048])`, for any number of images at once
    search_by     a second session, of the graph with that Reshape, answers the same images alike

The Predictor then does this:

    predict   images are rounded to grey levels, moved to (N, H, W, C) and given to the file one at a time;
              what comes back is the logarithm of its probabilities
    search    the same by the second session, for all images at once
    module    the twin, which gives the logits before the Softmax
    finish    from these to what `predict` returns
"""

import math
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dgad_tk.artifacts.predictor import Images, Logits, OpenShapeError, Predictor, count_classes
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.common import UserError, reason_of, sha256_file
from exporters.onnx_open.free_batch import InParts, free_batch
from exporters.onnx_open.image_axes import image_inputs
from exporters.onnx_open.image_input import ImageInput, noise
from exporters.onnx_open.logits_output import (
    Squash,
    answer_step,
    answer_with,
    find_logits,
    find_squash,
    is_made_by,
    is_one_number,
)
from exporters.onnx_open.runtime_graph import precision_of, runtime_graph
from exporters.onnx_open.search_session import Answer, search_by
from exporters.onnx_open.session import BLANK, OTHER_SIZE, Runtime, open_session, tried
from exporters.onnx_open.single.endings import AtEnd, Ending, OneNumber, read_one_number
from exporters.onnx_read.parts import inlined
from exporters.onnx_read.read import read_onnx, record_of
from exporters.onnx_read.said import names_said, size_said
from exporters.onnx_twin import to_torch
from exporters.onnx_twin.convolutions import freeze_convolutions

SQUASH_TOLERANCE = 1e-2
"""Largest difference of probabilities at which what looks like the final Softmax is one over the classes."""


class NoGradients(UserError):
    """ONNX Runtime runs a file, but no differentiable module can be made of it.

    Attributes:
        predictor: answers without gradients, for those who need none.
    """

    def __init__(self, obstacle: UserError, predictor: Predictor) -> None:
        super().__init__(f"'{predictor.path}': {obstacle.message}", obstacle.hint)
        self.predictor = predictor


def load_onnx(
    path: Path,
    input_shape: tuple[int, int, int] | None = None,
    interface: Interface = AS_IS,
    *,
    gradients: bool = True,
) -> Predictor:
    """Open an ONNX classifier: ONNX Runtime predicts, the twin differentiates.

    Where a file ends in a Softmax or Sigmoid, gradients come from the logits before it. `predict` returns the logarithm
    of the file's own answer: the same logits up to a constant per image, with the same first largest entry. So a
    verdict is always the file's.

    Args:
        input_shape: (C, H, W), where the graph leaves its input's shape open or takes flat images.
        interface: what the file expects to be done to images, and what its shapes do not say.
        gradients: whether to make the twin, which takes time. Without it `predict` returns probabilities as they are.

    Raises:
        NoGradients: it runs, and its twin cannot be made: it has an operator that the twin lacks.
        UserError: not ONNX, damaged, not an image classifier, or one that can be read in several ways.
    """
    where = str(path)
    proto = read_onnx(path)
    artifact = record_of(proto, path)
    interface.check_unneeded(artifact, where)
    if artifact is not None:
        input_shape, interface = artifact.input_shape, replace(interface, layout="nchw")
    session = open_session(path)
    with suppress(UserError):  # what cannot be written out is an obstacle to the twin, which says so
        proto = inlined(proto)
    try:
        ways = image_inputs(session.get_inputs(), proto, input_shape, interface, where)
    except OpenShapeError as error:
        error.usual = size_said(proto)
        raise
    runtime, answers = tried(session, ways, where)
    image = runtime.image
    if artifact is not None and image.shape != artifact.input_shape:
        raise UserError(
            f"'{where}' takes images of {image.shape}, its metadata record says {artifact.input_shape} (C, H, W)",
            hint="export it again",
        )
    types = {entry.name: entry.type for entry in session.get_outputs()}
    output = find_logits(answers, types, image.batch or BLANK, interface.logits_output, proto, where)
    one: OneNumber | None = None
    if is_one_number(answers[output], image.batch or BLANK):
        one = read_one_number(proto, output, answers[output].dtype, answer_step(proto, output))
    answer = onnx.ValueInfoProto()
    answer.CopyFrom(next(info for info in proto.graph.output if info.name == output))
    module: nn.Module | None = None
    squash: Squash | None = None
    ending: Ending | None = None
    obstacle: UserError | None = None
    notes: list[str] = []
    try:
        if gradients and one is None:
            module, squash, notes = _differentiable(proto, output, runtime)
        elif gradients and one is not None:
            module, ending, notes = _of_one_number(proto, output, one, runtime)
        if module is not None:
            module = module.to("cuda" if torch.cuda.is_available() else "cpu")
    except UserError as error:
        obstacle, notes = error, [f"there are no gradients: {error.message}"]

    def logits_of(rows: NDArray[Any]) -> Logits:
        if one is not None:
            return one.answers(rows)
        return squash.logits_of(rows) if squash else np.asarray(rows, dtype=np.float32)

    def predict(images: Images) -> Logits:
        return logits_of(runtime.rows(images, output))

    def finish(logits: Tensor) -> Tensor:
        if one is not None and ending is not None:
            return one.finish(ending, logits)
        assert squash is not None
        return squash.log_probabilities(squash.probabilities(logits), answers[output].dtype)

    if one is not None:
        notes = [one.note, *notes]
    probability = one is not None and one.probability
    inexact = squash.error if squash else one.error if one is not None and probability else 0.0
    classes = count_classes(predict, image.shape, artifact, where)
    precision = precision_of(proto)
    # Between the smallest steps of quantised probabilities their logarithm doubles.
    step = max(answer_step(proto, proto.graph.output[0].name), math.log(2) if squash and squash.step else 0.0)
    search: Callable[[Images], Logits] | None = None
    if gradients and image.batch is not None:
        read = Answer(answer, logits_of, precision, step, squash is not None or probability, inexact)
        search, note = search_by(proto, read, runtime)
        notes.append(note)
    if len(answers) > 1:
        notes = [f"the logits are the output '{output}', one of {', '.join(answers)}", *notes]
    predictor = Predictor(
        predict,
        module,
        image.shape,
        classes,
        "onnx",
        path,
        sha256_file(path),
        artifact,
        runtime=f"onnxruntime {onnxruntime.__version__} {session.get_providers()[0]}",
        finish=finish if squash or (probability and ending) else None,
        answer_error=inexact,
        interface=replace(image.interface, logits_output=output),
        notes=(*image.notes, *notes),
        batch=image.batch,
        precision=precision,
        logit_step=step,
        search=search,
        one_number=one is not None,
        names=() if artifact is not None else names_said(proto, classes),
    )
    if obstacle is not None:
        raise NoGradients(obstacle, predictor) from obstacle
    return predictor


def _differentiable(
    proto: onnx.ModelProto, output: str, runtime: Runtime
) -> tuple[nn.Module, Squash | None, list[str]]:
    """The module that gradients come from, the end of `proto` that it leaves out, and notes. `proto` is changed."""
    squash = find_squash(proto, output)
    if squash is not None:
        module, notes = _any_batch(proto, squash.logits, runtime)
        images = _images(runtime.image, runtime.image.batch or BLANK)
        with torch.no_grad():
            ours = squash.probabilities(module(images)).numpy()
        theirs = runtime.rows(images.numpy(), output)
        if ours.shape == theirs.shape and np.abs(ours - theirs).max() <= SQUASH_TOLERANCE:
            notes.append(
                f"gradients come from the logits before the final {squash.kind}, verdicts from the file's own answer"
            )
            return module, squash, notes
    module, notes = _any_batch(proto, output, runtime)
    if is_made_by(proto, output, "LogSoftmax"):
        notes.append("the file answers with log-probabilities: they serve as logits")
    return module, None, notes


def _of_one_number(
    proto: onnx.ModelProto, output: str, one: OneNumber, runtime: Runtime
) -> tuple[nn.Module, Ending, list[str]]:
    """The module that gives logits `(N, 2)`, the first ending of `one` that fits, and notes. `proto` is changed."""
    images = _images(runtime.image, runtime.image.batch or BLANK)
    answers = torch.from_numpy(one.numbers(runtime.rows(images.numpy(), output)))
    for tried_ending in one.endings[:-1]:
        net, notes = _any_batch(proto, tried_ending.tensor, runtime)
        with torch.no_grad():
            ending = tried_ending.placed(net(images), answers)
            module = None if ending is None else AtEnd(net, ending)
            fits = module is not None and ending is not None and _near(ending.probability(module(images)), answers)
        if module is not None and ending is not None and fits:
            return module, ending, [*notes, f"gradients come from {ending.remark}, verdicts from the file's own answer"]
    ending = one.endings[-1]
    net, notes = _any_batch(proto, output, runtime)
    if one.probability:
        notes.append(f"gradients come from {ending.remark}")
    return AtEnd(net, ending), ending, notes


def _near(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= SQUASH_TOLERANCE)


def _any_batch(proto: onnx.ModelProto, tensor: str, runtime: Runtime) -> tuple[nn.Module, list[str]]:
    """The twin of the graph up to `tensor`, for any number of images `(N, C, H, W)` in [0, 1]; notes about it."""
    image = runtime.image
    answer_with(proto, tensor)
    # A quantised or half-precision file is run as something else than it says.
    runs = proto if precision_of(proto) == "fp32" else runtime_graph(proto)
    twin: nn.Module = to_torch(runs)
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
        twin, free = free_batch(graph, twin, image.batch, lambda count: feed(_images(image, count)))
        if not free:
            notes.append(f"gradients are computed {image.batch} at a time, which is slow: the graph is made for that")
    # Channels-last weights make the convolutions of a gradient step a fifth to a third faster on a CPU. `Module.to`
    # would refuse a graph with a constant of five axes.
    for weight in twin.buffers():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if isinstance(twin, fx.GraphModule):
        freeze_convolutions(twin)
    plain = image.plain and logits.dim() == 2 and logits.dtype is torch.float32
    return (twin if plain else _Fed(image, twin)).eval(), notes


class _Fed(nn.Module):
    """The twin of a graph, given its input as made from images. Gives float32 logits `(N, K)`."""

    def __init__(self, image: ImageInput, twin: nn.Module) -> None:
        super().__init__()
        self.feed, self.twin = image.feed(), twin

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.twin(self.feed(x))
        return logits.reshape(len(x), -1).float()


def _images(image: ImageInput, count: int) -> Tensor:
    return torch.from_numpy(noise(image.shape, count))
