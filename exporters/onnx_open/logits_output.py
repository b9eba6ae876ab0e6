"""What an ONNX file answers: which of its outputs are the logits, and what stands before a final Softmax."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor

from dgad_tk.artifacts.one_number import SIGMOID_ERROR
from dgad_tk.artifacts.predictor import Logits
from dgad_tk.common import UserError
from exporters.onnx_read.parts import computes, constants, makers

SQUASHES: tuple[Literal["Softmax", "Sigmoid"], ...] = ("Softmax", "Sigmoid")
FLOATS = frozenset(map(np.dtype, ("float16", "float32", "float64")))
QUANTISED = frozenset(map(np.dtype, ("int8", "uint8", "int32")))
TELLING = ("logit", "score", "output", "prob", "class")
"""In names of outputs, from the most to the least telling."""
LABELS = ("ArgMax", "ArgMin", "TopK")
"""Operators whose answers are numbers of classes."""
LAYERS = ("Gemm", "MatMul", "MatMulInteger", "Conv", "FusedGemm", "FusedMatMul")
"""Ends of names of operators with weights."""


class SeveralOutputs(UserError):
    """Several outputs of a file may be the logits, and nothing in it tells which.

    Attributes:
        widths: how many numbers each of them has for an image, by name.
    """

    def __init__(self, message: str, hint: str, widths: Mapping[str, int]) -> None:
        super().__init__(message, hint)
        self.widths = widths


def find_logits(
    answers: Mapping[str, Any], types: Mapping[str, str], images: int, asked: str | None, graph: ModelProto, where: str
) -> str:
    """The name of the output that holds a row of K >= 2 numbers for each image, else of one that holds one number.

    A single number goes before a row that it is computed from by a layer with weights: that row are features.

    Args:
        answers: what the runtime gave for some images, by output.
        types: of all outputs, as the runtime names them.
        images: how many these were.
        asked: the name that the user gave.

    Raises:
        SeveralOutputs: there are several that nothing tells apart.
        UserError: there is none, or it is not the one that was asked for.
    """
    # Quantised files may answer in integers; where there are float numbers too, integers are classes or ranks, and
    # those of 64 bits always are.
    both = ([name for name, answer in answers.items() if _are_logits(answer, images, of)] for of in (FLOATS, QUANTISED))
    fitting = next((names for names in both if names), [])
    # Behind a TopK the largest number always comes first, and stands for no class.
    fitting = [name for name in fitting if not is_made_by(graph, name, "TopK")]
    singles = [name for name in _single_numbers(answers, images) if not is_made_by(graph, name, *LABELS)]
    if asked is None:
        fitting = [name for name in singles if _is_behind(graph, name, fitting)] or fitting or singles
    else:
        fitting += singles
    given = ", ".join(f"{name}: {getattr(answers[name], 'shape', types[name])}" for name in answers)
    if asked is not None:
        if asked not in fitting:
            raise UserError(
                f"'{where}' has no output '{asked}' of logits (N, K): it gives {given} for {images} images",
                hint=f"--logits-output {' or '.join(fitting)}" if fitting else "is it an image classifier?",
            )
        return asked
    if not fitting:
        maps = any(kind.startswith("seq(map") for kind in types.values())
        raise UserError(
            f"'{where}' is not a classifier: expected logits (N, K), it gives {given} for {images} images",
            hint="convert it without ZipMap (options={'zipmap': False})"
            if maps
            else "a classifier gives one row of K >= 2 numbers an image, or one number for two classes",
        )
    # Where a Softmax and its input are both outputs, they are one answer, and the input has the better gradients.
    choice = [name for name in fitting if (squash := find_squash(graph, name)) is None or squash.logits not in fitting]
    if len(choice) == 1:
        return choice[0]
    for word in TELLING:
        exactly = [name for name in choice if name.lower() in (word, f"{word}s")]
        for named in (exactly, [name for name in choice if word in name.lower()]):
            if len(named) == 1:
                return named[0]
    raise SeveralOutputs(
        f"'{where}' has {len(choice)} outputs that may be the logits: {given}",
        "name one with --logits-output",
        {name: answers[name].size // images for name in choice},
    )


def _are_logits(answer: Any, images: int, kinds: Collection[np.dtype[Any]]) -> bool:
    """Whether it is a row of K >= 2 numbers per image: `(N, K)`, perhaps with axes of size 1; of one image `(K,)`."""
    if not isinstance(answer, np.ndarray) or answer.dtype not in kinds or answer.size < 2 * images:
        return False
    if images == 1 and answer.ndim == 1:
        return True
    return answer.ndim >= 2 and answer.shape[0] == images and max(answer.shape[1:]) * images == answer.size


def _single_numbers(answers: Mapping[str, Any], images: int) -> list[str]:
    """Outputs with one number per image, quantised ones only where no others are. Integers of 32 bits are labels."""
    for kinds in (FLOATS, QUANTISED - {np.dtype("int32")}):
        given = {name: answer for name, answer in answers.items() if is_one_number(answer, images)}
        if found := [name for name, answer in given.items() if answer.dtype in kinds]:
            return found
    return []


def is_one_number(answer: Any, images: int) -> bool:
    """Whether an answer has one entry for each image: `(N,)`, perhaps with axes of size 1; of one image `()`."""
    if not isinstance(answer, np.ndarray | np.generic) or answer.size != images:
        return False
    return images == 1 or answer.shape[:1] == (images,)


def _is_behind(graph: ModelProto, name: str, rows: Collection[str]) -> bool:
    """Whether a value is computed from each of some rows by layers with weights."""
    made_by, reached = makers(graph.graph), set()
    waiting, seen = [(name, False)], set()
    while waiting:
        value, weighted = waiting.pop()
        node = made_by.get(value)
        if weighted and value in rows:
            reached.add(value)
        if node is not None and (value, weighted) not in seen:
            seen.add((value, weighted))
            weighted = weighted or any(node.op_type.endswith(layer) for layer in LAYERS)
            waiting += [(each, weighted) for each in node.input]
    return bool(rows) and reached == set(rows)


@dataclass(frozen=True)
class Squash:
    """A final Softmax or Sigmoid. It keeps the order of the classes.

    Attributes:
        logits: the tensor before it.
        kind: which of the two.
        step: of the probabilities, where they are quantised; else 0.
    """

    logits: str
    kind: Literal["Softmax", "Sigmoid"]
    step: float = 0.0

    @property
    def error(self) -> float:
        """Error of an answer of any size. A Softmax has none, since its small answers have small errors."""
        return SIGMOID_ERROR if self.kind == "Sigmoid" else 0.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits `(N, K)`."""
        return logits.softmax(dim=1) if self.kind == "Softmax" else logits.sigmoid()

    def log_probabilities(self, probabilities: Tensor, dtype: np.dtype[Any]) -> Tensor:
        """The logarithm of a file's answers in `dtype`; those below its smallest number or step count as that."""
        return probabilities.clamp(min=max(self.step, float(np.finfo(dtype).tiny))).log()

    def logits_of(self, answers: NDArray[Any]) -> Logits:
        """A file's probabilities `(N, K)` as logarithms, with the same first largest entry in each row."""
        probabilities = answers.astype(np.float32)
        logs: Logits = self.log_probabilities(torch.from_numpy(probabilities), answers.dtype).numpy()
        # Neighbouring numbers can have one logarithm; the verdict is the file's own.
        winner = probabilities.argmax(axis=1)
        (tied,) = np.nonzero(logs.argmax(axis=1) != winner)
        logs[tied, winner[tied]] = np.nextafter(logs[tied].max(axis=1), np.float32(np.inf))
        return logs


def find_squash(model: ModelProto, output: str) -> Squash | None:
    """The Softmax or Sigmoid that makes `output`; None if neither does."""
    made_by, step = makers(model.graph), answer_step(model, output)
    node = computes(made_by, output)
    if node is not None and step:
        quantiser = computes(made_by, node.input[0])
        if quantiser is None or quantiser.op_type != "QuantizeLinear":
            return None
        node = computes(made_by, quantiser.input[0])
    kind = next((each for each in SQUASHES if node is not None and node.op_type == each), None)
    return None if node is None or kind is None else Squash(node.input[0], kind, step)


def answer_step(model: ModelProto, output: str) -> float:
    """The quantisation step of `output`, 0 where the last operator that computes gives floats."""
    node = computes(makers(model.graph), output)
    if node is None or node.op_type != "DequantizeLinear":
        return 0.0
    scale = constants(model.graph).get(node.input[1])
    return 0.0 if scale is None else float(numpy_helper.to_array(scale).max())


def is_made_by(model: ModelProto, output: str, *operators: str) -> bool:
    """Whether one of some operators computes the numbers of `output`."""
    node = computes(makers(model.graph), output)
    return node is not None and node.op_type in operators


def answer_with(model: ModelProto, tensor: str) -> None:
    """Make `tensor` the only output of the graph, in place."""
    kept = onnx.ValueInfoProto(name=tensor)
    for info in model.graph.output:
        if info.name == tensor:
            kept.CopyFrom(info)
    del model.graph.output[:]
    model.graph.output.append(kept)
