"""What an ONNX file answers: which of its outputs holds the logits, and how its rows may be read."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

from dgad_tk.common import UserError
from exporters.onnx_open.readings.one_number import readings_of_one_number
from exporters.onnx_open.readings.reading import Reading
from exporters.onnx_open.readings.squash import find_squash
from exporters.onnx_read.parts import is_made_by, makers

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
    before = {name: find_squash(graph, name, answers[name].dtype) for name in fitting}
    choice = [name for name, squash in before.items() if squash is None or squash.tensor not in fitting]
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


def readings_of(model: ModelProto, output: str, answer: Any, images: int) -> list[Reading]:
    """How the rows of `output` may be read, the best first. The last needs nothing but the output itself.

    Args:
        answer: what the runtime gave there for some images.
        images: how many these were.
    """
    if is_one_number(answer, images):
        return readings_of_one_number(model, output, answer.dtype)
    logarithms = is_made_by(model, output, "LogSoftmax")
    plain = Reading(output, remark="the file answers with log-probabilities: they serve as logits" * logarithms)
    squash = find_squash(model, output, answer.dtype)
    return [plain] if squash is None else [squash, plain]
