"""Between which numbers a value of a graph lies, whatever the image. It tells a probability from a logit."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from exporters.onnx_read.parts import MOVING, PASSING_ON, constants, makers

Range = tuple[float, float]

ANY: Range = (-math.inf, math.inf)
SLACK = 0.02
"""By which quantised probabilities may leave [0, 1]."""
DEEPEST = 40
"""Nodes that are followed towards the input. What is behind more of them may be any number."""

FIXED: Mapping[str, Range] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax", "QLinearSigmoid", "QLinearSoftmax"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Softsign", "Sin", "Cos"), (-1.0, 1.0)),
    "Softplus": (0.0, math.inf),
    "LogSoftmax": (-math.inf, 0.0),
}
"""Ranges of operators, whatever they are given."""
KEEPING = MOVING | PASSING_ON | {"ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool"}
"""Operators whose results lie between the smallest and the largest number of their inputs."""


def is_probability(model: ModelProto, name: str) -> bool:
    """Whether a value lies in [0, 1] for every image."""
    low, high = value_range(model, name)
    return low >= -SLACK and high <= 1 + SLACK


def value_range(model: ModelProto, name: str) -> Range:
    """The smallest and the largest number that a value can hold, as far as the last operators tell."""
    return _Ranges(model).of(name)


class _Ranges:
    def __init__(self, model: ModelProto) -> None:
        self.made_by, self.constants = makers(model.graph), constants(model.graph)

    def of(self, name: str, depth: int = 0) -> Range:
        if name in self.constants:
            values = numpy_helper.to_array(self.constants[name])
            known = values.dtype.kind in "fiu" and values.size > 0 and bool(np.isfinite(values).all())
            return (float(values.min()), float(values.max())) if known else ANY
        node = self.made_by.get(name)
        if node is None or depth > DEEPEST:
            return ANY
        if node.op_type == "Constant":  # of a number, which is no tensor
            numbers = [float(each.f) for each in node.attribute if each.name == "value_float"]
            return (numbers[0], numbers[0]) if numbers else ANY
        if node.op_type in FIXED:
            return FIXED[node.op_type]
        if node.op_type == "DequantizeLinear":
            return self._dequantised(node, depth)
        given = [self.of(each, depth + 1) for each in node.input if each]
        if node.op_type == "Div" and given[0][0] >= 0 and self._has_part(node.input[1], node.input[0], depth):
            return 0.0, 1.0
        if node.op_type in KEEPING:
            parts = given if node.op_type == "Concat" else given[:1]
            return min(low for low, _ in parts), max(high for _, high in parts)
        if node.op_type == "Clip":
            low, high = self._bounds(node)
            return max(low, min(high, given[0][0])), min(high, max(low, given[0][1]))
        if node.op_type == "Where":
            return min(given[1][0], given[2][0]), max(given[1][1], given[2][1])
        found = _ARITHMETIC[node.op_type](*given) if node.op_type in _ARITHMETIC else ANY
        return ANY if any(math.isnan(each) for each in found) else found

    def _has_part(self, total: str, part: str, depth: int) -> bool:
        """Whether a value is a sum of numbers from 0 on, and `part` is one of them, or all of them."""
        node = self.made_by.get(total)
        if node is None or part not in node.input:
            return False
        if node.op_type == "Add":
            return all(self.of(each, depth + 1)[0] >= 0 for each in node.input)
        return node.op_type == "ReduceSum"

    def _bounds(self, node: NodeProto) -> Range:
        """Of a Clip, which has them as inputs or, in older files, as attributes."""
        named = {each.name: float(each.f) for each in node.attribute}
        low, high = named.get("min", -math.inf), named.get("max", math.inf)
        if len(node.input) > 1 and node.input[1]:
            low = self.of(node.input[1])[0]
        if len(node.input) > 2 and node.input[2]:
            high = self.of(node.input[2])[1]
        return low, high

    def _dequantised(self, node: NodeProto, depth: int) -> Range:
        """What the type can hold and, behind a quantiser, what that was given, up to half a step."""
        scale = self.of(node.input[1])[1]
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        kind = np.dtype(np.uint8) if zero is None else np.dtype(helper.tensor_dtype_to_np_dtype(zero.data_type))
        if not math.isfinite(scale) or kind not in (np.dtype(np.uint8), np.dtype(np.int8)):
            return ANY
        offset = 0 if zero is None else int(np.max(numpy_helper.to_array(zero)))
        held = ((np.iinfo(kind).min - offset) * scale, (np.iinfo(kind).max - offset) * scale)
        quantiser = self.made_by.get(node.input[0])
        while quantiser is not None and quantiser.op_type in MOVING | PASSING_ON:
            quantiser = self.made_by.get(quantiser.input[0])
        if quantiser is None or quantiser.op_type not in {"QuantizeLinear", *FIXED}:
            return held
        low, high = FIXED.get(quantiser.op_type) or self.of(quantiser.input[0], depth + 1)
        return max(held[0], low - scale / 2), min(held[1], high + scale / 2)


def _sum(*terms: Range) -> Range:
    return sum(low for low, _ in terms), sum(high for _, high in terms)


def _product(one: Range, other: Range) -> Range:
    ends = [a * b for a in one for b in other]
    return ANY if any(map(math.isnan, ends)) else (min(ends), max(ends))  # infinity times 0 is NaN


def _inverse(of: Range) -> Range:
    low, high = of
    return ANY if low <= 0 <= high else (1 / high, 1 / low)


def _exponential(of: Range) -> Range:
    low, high = (0.0 if end < -700 else math.exp(end) if end < 700 else math.inf for end in of)
    return low, high


_ARITHMETIC: Mapping[str, Callable[..., Range]] = {
    "Add": _sum,
    "Sub": lambda one, other: _sum(one, (-other[1], -other[0])),
    "Neg": lambda of: (-of[1], -of[0]),
    "Mul": _product,
    "Div": lambda one, other: _product(one, _inverse(other)),
    "Reciprocal": _inverse,
    "Exp": _exponential,
    "Relu": lambda of: (max(0.0, of[0]), max(0.0, of[1])),
    "Abs": lambda of: (0.0, max(abs(of[0]), abs(of[1]))),
    "Min": lambda *of: (min(low for low, _ in of), min(high for _, high in of)),
    "Max": lambda *of: (max(low for low, _ in of), max(high for _, high in of)),
}
