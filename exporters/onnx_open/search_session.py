"""A second session for files of a fixed batch size: their graph for any number of images, for the queries of a search.

The file judges. A search asks thousands of times as often, and what it hears only leads it. A file that takes one
image at a time spends most of that time between images. So searches ask a graph in which the batch is free. It is used
only if it answers as the file does, up to rounding, for several numbers of images.

    freed      the graph as the walk of the twin rewrites it, where the twin has its operators
    loosened   else the graph, with a free batch in its input and in the sizes of Reshape that begin with the batch
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

from dgad_tk.answers.spread import apart, leeway, without_rounding_of_probabilities
from dgad_tk.artifacts.predictor import Images, Logits
from dgad_tk.common import UserError
from exporters.onnx_open.free_batch import TOLERANCE, freed
from exporters.onnx_open.image_input import noise
from exporters.onnx_open.readings.reading import Reading
from exporters.onnx_open.runtime_graph import Precision
from exporters.onnx_open.session import Runtime, open_session
from exporters.onnx_read.parts import constants, nodes, tensors
from exporters.onnx_read.runtime_memory import memory_limit
from exporters.onnx_twin.tensors import image_of

TOLERANCES = {"fp32": TOLERANCE, "fp16": 1e-2}
"""On logits, relative to their spread within an image. Half precision has relative steps of 1e-3."""
LARGEST_SHARE = 1 / 8
"""Of the memory for ONNX Runtime that a copy of the weights may take. The file itself comes first."""

FREED = "searches ask a copy of its graph that takes any number of images; the file itself gives every verdict"
SLOW = "searches ask the file itself, which takes long: {}"

Rows = Callable[[Images], NDArray[Any]]
"""Maps images `(N, C, H, W)` to rows `(N, K)` of an output."""


@dataclass(frozen=True)
class Answer:
    """How the answers of a file become logits, and how much two answers may differ.

    Attributes:
        output: the one that is asked for.
        reading: of its rows.
        precision: of the graph.
        logit_step: of quantised logits; 0 where nothing says so.
    """

    output: ValueInfoProto
    reading: Reading
    precision: Precision = "fp32"
    logit_step: float = 0.0

    def near(self, found: NDArray[Any], expected: NDArray[Any]) -> bool:
        """Whether rows `(n, ...)` are the first n of the `expected` ones up to rounding."""
        if found.shape != expected[: len(found)].shape:
            return False
        every = self.reading.logits_of(expected)
        ours, theirs = self.reading.logits_of(found), every[: len(found)]
        ours = without_rounding_of_probabilities(ours, theirs, self.reading.error)
        allowed = leeway(every, self.precision, TOLERANCES, step=self.logit_step, squashed=self.reading.probabilities)
        return bool((apart(ours, theirs) <= allowed[: len(found)]).all())


def search_by(model: ModelProto, answer: Answer, runtime: Runtime) -> tuple[Callable[[Images], Logits] | None, str]:
    """What searches ask in place of a file of a fixed batch size.

    Args:
        model: the graph of the file. Its outputs are replaced by that of `answer`.
        runtime: the file itself.

    Returns:
        Logits `(N, K)` of images for any N, as the file gives them up to rounding; None where the file itself is as
        good. And a note that says what is asked.
    """
    image, output = runtime.image, answer.output.name
    assert image.batch is not None
    if sum(tensor.ByteSize() for tensor in tensors(model)) > LARGEST_SHARE * memory_limit():
        return None, SLOW.format("a copy of its weights would take too much memory")

    # More images than the file takes at a time, and three numbers of them.
    images = noise(image.shape, image.batch + 4)
    expected = runtime.rows(images, output)

    def same(rows: Rows) -> bool:
        return all(answer.near(rows(images[:count]), expected) for count in (1, 3, len(images)))

    asked, why_not = _freed(model, answer.output, runtime, same)
    if asked is None:
        return None, SLOW.format(why_not)
    rows = asked
    return lambda images: answer.reading.logits_of(rows(images)), FREED


def _freed(
    model: ModelProto, output: ValueInfoProto, runtime: Runtime, same: Callable[[Rows], bool]
) -> tuple[Rows | None, str]:
    """The graph for any number of images, once it is the `same`; or why there is none, in half a sentence."""
    image = runtime.image
    assert image.batch is not None
    if not image.has_batch_axis:
        return None, "its graph has no axis for the batch"
    if any(node.op_type == "DynamicQuantizeLinear" for node in nodes(model.graph)):
        # The difference that this makes is of the size of a rounding, which is allowed.
        return None, "its graph quantises all images of a batch by one scale"
    del model.graph.output[:]
    model.graph.output.append(output)
    reason = ""
    for free in _free_graphs(model, (image.batch, *image.feed().array(noise(image.shape, 1)).shape[1:])):
        try:
            graph = free.SerializeToString()
        except (EncodeError, ValueError):  # more than 2 GB
            return None, "its graph is too large to be changed in memory"
        try:
            asked = Runtime(open_session(Path(runtime.where), graph), image.of_any_batch(), runtime.where)
            if same(partial(asked.rows, output=output.name)):
                return _AnyNumber(asked, output.name, runtime), ""
            reason = "its graph answers differently with another batch size"
        except UserError:
            reason = reason or "its graph does not run with another batch size"
        except ValueError:
            reason = "its graph does not give a row for each of several images"
    return None, reason


class _AnyNumber:
    """Rows of any number of images by a session of the freed graph."""

    def __init__(self, asked: Runtime, output: str, file: Runtime) -> None:
        self.asked, self.output, self.file = asked, output, file

    def __call__(self, images: Images) -> NDArray[Any]:
        try:
            return self.asked.rows(images, self.output)
        except UserError:
            # So many images at a time may take more memory than there is. The file takes them in its own number, and
            # says what is wrong if it cannot either.
            return self.file.rows(images, self.output)


def _free_graphs(model: ModelProto, shape: tuple[int, ...]) -> Iterator[ModelProto]:
    """The graph for any number of images, in the ways in which it may be had."""
    # Without a twin, or with shapes that do not fit another number of images, there is still the other way.
    with suppress(UserError, RuntimeError, ValueError, TypeError, IndexError):
        yield freed(model, shape)[0]
    yield loosened(model, shape)


def loosened(model: ModelProto, shape: tuple[int, ...]) -> ModelProto:
    """The graph with a free batch in its input, and in those targets of Reshape that begin with the batch.

    It serves graphs whose images stay in front of everything, which are most, and looks at no operator but Reshape.

    Args:
        model: with its tensors inside. It is not changed.
        shape: of its input, with the batch that it was written for in front.
    """
    free = ModelProto()
    free.CopyFrom(model)
    image = image_of(free.graph)
    kind = image.type.tensor_type.elem_type
    image.CopyFrom(helper.make_tensor_value_info(image.name, kind, ["batch", *shape[1:]]))
    del free.graph.value_info[:]
    for info in free.graph.output:
        for size in info.type.tensor_type.shape.dim:
            size.Clear()
    known = constants(free.graph)
    for node in free.graph.node:
        keeps_zeros = any(item.name == "allowzero" and item.i for item in node.attribute)
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in known or keeps_zeros:
            continue
        target = numpy_helper.to_array(known[node.input[1]])
        if target.ndim == 1 and len(target) and target[0] == shape[0]:
            name = f"{node.output[0]}/sizes"
            # 0 takes the size from the input.
            free.graph.initializer.append(numpy_helper.from_array(np.array([0, *target[1:]], np.int64), name))
            node.input[1] = name
    return free
