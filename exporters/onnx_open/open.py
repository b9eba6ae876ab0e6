"""ONNX files, opened: ONNX Runtime predicts, and a differentiable twin of the graph gives gradients.

A file whose input is uint8 `(1, 224, 224, 3)` and whose graph ends in `Reshape(x, [1, -1]) -> Gemm -> Softmax` becomes
a Predictor like this:

    read_onnx       its bytes become a graph that is safe to open (`onnx_read.read`)
    open_session    ONNX Runtime loads the file
    image_inputs    its one input is an image (H, W, C), in numbers from 0 to 255
    tried           it answers blank images, one at a time
    find_logits     its one output `(1, 1000)` holds a row per image
    readings_of     that row comes from a Softmax, of the output of Gemm (`readings`)
    differentiable  the twin of the graph up to Gemm (`to_torch`), with `Reshape(x, [-1, 2048])` for any number of
                    images at once (`free_batch`); its probabilities are those of the file
    search_by       a second session, of the graph with that Reshape, answers the same images alike

The Predictor then does this:

    predict   images are rounded to grey levels, moved to (N, H, W, C) and given to the file one at a time;
              what comes back is the logarithm of its probabilities
    search    the same by the second session, for all images at once
    module    the twin, which gives the logits before the Softmax
    finish    from these to what `predict` returns

How a file is read that ends otherwise is another `Reading`; nothing else changes here.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
from torch import nn

from dgad_tk.artifacts.predictor import Images, Logits, OpenShapeError, Predictor, count_classes
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.common import UserError, sha256_file
from exporters.onnx_open.gradients import differentiable
from exporters.onnx_open.image_axes import image_inputs
from exporters.onnx_open.logits_output import find_logits, readings_of
from exporters.onnx_open.readings.one_number import OneNumber
from exporters.onnx_open.runtime_graph import precision_of
from exporters.onnx_open.search_session import Answer, search_by
from exporters.onnx_open.session import BLANK, open_session, tried
from exporters.onnx_read.parts import answer_step, inlined
from exporters.onnx_read.read import read_onnx, record_of
from exporters.onnx_read.said import names_said, size_said


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
    trainable: bool = False,
) -> Predictor:
    """Open an ONNX classifier: ONNX Runtime predicts, the twin differentiates.

    Where a file ends in a Softmax or Sigmoid, gradients come from the logits before it. `predict` returns the logarithm
    of the file's own answer: the same logits up to a constant per image, with the same first largest entry. So a
    verdict is always the file's.

    Args:
        input_shape: (C, H, W), where the graph leaves its input's shape open or takes flat images.
        interface: what the file expects to be done to images, and what its shapes do not say.
        gradients: whether to make the twin, which takes time. Without it `predict` returns probabilities as they are.
        trainable: make a twin to train, `make_trainable`.

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
    declared = onnx.ValueInfoProto()
    declared.CopyFrom(next(info for info in proto.graph.output if info.name == output))
    readings = readings_of(proto, output, answers[output], image.batch or BLANK)
    reading = readings[-1]
    module: nn.Module | None = None
    obstacle: UserError | None = None
    notes = [f"the logits are the output '{output}', one of {', '.join(answers)}"] if len(answers) > 1 else []
    notes += [reading.note] if reading.note else []
    try:
        if gradients:
            module, reading, more = differentiable(proto, readings, runtime, trainable=trainable)
            notes += more
    except UserError as error:
        obstacle = error
        notes.append(f"there are no gradients: {error.message}")

    def predict(images: Images) -> Logits:
        return reading.logits_of(runtime.rows(images, output))

    classes = count_classes(predict, image.shape, artifact, where)
    precision = precision_of(proto)
    step = max(reading.least_step, answer_step(proto, reading.tensor))
    search: Callable[[Images], Logits] | None = None
    if gradients and image.batch is not None:
        search, note = search_by(proto, Answer(declared, reading, precision, step), runtime)
        notes.append(note)
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
        finish=reading.finish if module is not None and reading.probabilities else None,
        answer_error=reading.error,
        interface=replace(image.interface, logits_output=output),
        notes=(*image.notes, *notes),
        batch=image.batch,
        precision=precision,
        logit_step=step,
        search=search,
        one_number=isinstance(reading, OneNumber),
        names=() if artifact is not None else names_said(proto, classes),
    )
    if obstacle is not None:
        raise NoGradients(obstacle, predictor) from obstacle
    return predictor
