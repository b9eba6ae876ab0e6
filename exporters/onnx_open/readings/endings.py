"""How a graph ends that gives one number per image, and from which value before the end gradients come.

    z -> Sigmoid -> p                                  z
    z -> Exp(-z) -> Add(1) -> Div(1, .) -> p           z
    z -> Exp(z) = e -> Div(e, Add(e, 1)) -> p          z
    z -> Softmax -> Gather or Slice -> p               the logits that Softmax is given
    z -> Exp(z) = e -> Div(e, ReduceSum(e)) -> as above
    z -> HardSigmoid, or Clip to [0, 1] -> p           what would have been cut
    z -> Sigmoid -> Sub(1, .) -> p                     -z
    z -> QLinearSigmoid -> DequantizeLinear -> p       z in its quantised numbers

What may follow (Reshape, Cast, Clip within [0, 1], quantisers) is passed by. Each ending is tried on noise, so that a
mistaken one costs nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor

from dgad_tk.artifacts.one_number import logit_of_probability, probability_of_logits
from exporters.onnx_open.readings.ranges import is_probability
from exporters.onnx_read.parts import MOVING, computes, constants, makers

LONGEST = 16
"""Nodes that are followed from the output."""


@dataclass(frozen=True)
class Ending:
    """What gradients come from.

    Attributes:
        tensor: its name in the graph.
        curve: how a probability p comes of a logit z: p = 1 / (1 + exp(-z)), or p = z + 0.5 cut to [0, 1].
        kind: whether the tensor holds logits of class 1, logits of several classes, one of which is picked, or
            probabilities of class 1.
        scale, offset: a logit is (number - offset) * scale.
        negative: the logit is that of class 0.
        column: the class that is picked, which `placed` finds.
    """

    tensor: str
    curve: Literal["sigmoid", "cut"] = "sigmoid"
    kind: Literal["logit", "classes", "probability"] = "logit"
    scale: float = 1.0
    offset: float = 0.0
    negative: bool = False
    column: int = -1

    @property
    def place(self) -> str:
        """Where gradients come from, for a note."""
        if self.kind == "classes":
            return "the logits before the final Softmax"
        if self.kind == "probability":
            return "the logarithms of that number, which vanish where it is 0 or 1"
        return "the logit before the final Sigmoid" if self.curve == "sigmoid" else "the number before it is cut to 0-1"

    def logits(self, values: Tensor) -> Tensor:
        """The tensor of N images as logits `(N, 2)`."""
        rows = (values.reshape(len(values), -1).float() - self.offset) * self.scale
        if self.kind == "classes":
            others = torch.cat([rows[:, : self.column], rows[:, self.column + 1 :]], dim=1)
            pair = torch.stack([others.logsumexp(dim=1), rows[:, self.column]], dim=1)
            return pair.flip(1) if self.negative else pair
        z = logit_of_probability(rows) if self.kind == "probability" else rows
        z = -z if self.negative else z
        return torch.cat([torch.zeros_like(z), z], dim=1)

    def probability(self, logits: Tensor) -> Tensor:
        """The probability of class 1 that the file gives for such logits `(N, 2)`, `(N,)`."""
        if self.curve == "cut":
            return (logits[:, 1] - logits[:, 0] + 0.5).clamp(0, 1)
        return probability_of_logits(logits)

    def placed(self, values: Tensor, answers: Tensor) -> "Ending | None":
        """This ending with the class that is picked, told by the file's own `answers` `(N,)`; None if none fits."""
        if self.kind != "classes":
            return self
        shares = values.reshape(len(values), -1).float().softmax(dim=1)
        shares = 1 - shares if self.negative else shares
        if shares.shape[1] < 2:
            return None
        return replace(self, column=int((shares - answers[:, None]).abs().amax(dim=0).argmin()))


def levels(model: ModelProto, names: Iterable[str]) -> tuple[float, float]:
    """Scale and zero point of a quantiser for all of a tensor; 1 and 0 where they are not in the graph."""
    known = constants(model.graph)
    found = [float(numpy_helper.to_array(known[name]).max()) if name in known else None for name in names]
    scale, zero = (*found, None, None)[:2]
    return (1.0, 0.0) if scale is None else (scale, zero or 0.0)


def endings_before(model: ModelProto, output: str) -> Iterator[Ending]:
    """What may stand before the end of a graph that gives a probability, from its output backwards."""
    made_by, negative, picked = makers(model.graph), False, False
    name = output
    for _ in range(LONGEST):
        node = computes(made_by, name)
        if node is None:
            return
        operator, name = node.op_type, node.input[0]
        if operator == "Sigmoid" and not picked:
            yield Ending(name, negative=negative)
            return
        if operator == "QLinearSigmoid" and not picked:
            scale, offset = levels(model, node.input[1:3])
            yield Ending(name, scale=scale, offset=offset, negative=negative)
            return
        if operator == "Softmax":
            yield Ending(name, kind="classes", negative=negative)
            return
        if operator == "HardSigmoid" and not picked:
            alpha, beta = (_attribute(node, key, usual) for key, usual in (("alpha", 0.2), ("beta", 0.5)))
            yield Ending(name, "cut", scale=alpha, offset=(0.5 - beta) / alpha if alpha else 0.0, negative=negative)
            return
        if operator in ("Div", "Reciprocal"):
            yield from (each for each in _written_out(made_by, node, negative) if each.kind == "classes" or not picked)
            return
        if operator == "Sub":
            negative, name = not negative, node.input[1]
        elif operator == "Where":  # the same function, written in two ways that do not overflow
            name = node.input[1]
        elif operator == "Clip" and not is_probability(model, name):
            yield Ending(name, "cut", offset=0.5, negative=negative)
            return
        elif operator in MOVING:
            picked = True
        elif operator not in ("Clip", "DequantizeLinear", "QuantizeLinear"):
            return


def _written_out(made_by: dict[str, NodeProto], node: NodeProto, negative: bool) -> Iterator[Ending]:
    """1 / (1 + exp(x)), whose logit is -x; exp(x) / (1 + exp(x)), whose logit is x; and a Softmax in the same way."""
    total = computes(made_by, node.input[-1])
    if total is None or total.op_type not in ("Add", "ReduceSum"):
        return
    for term in total.input:
        power = computes(made_by, term)
        if power is None or power.op_type != "Exp":
            continue
        if total.op_type == "ReduceSum":
            yield Ending(power.input[0], kind="classes", negative=negative)
        else:
            yield Ending(power.input[0], negative=negative != (term != node.input[0]))


def _attribute(node: NodeProto, key: str, usual: float) -> float:
    return next((float(helper.get_attribute_value(each)) for each in node.attribute if each.name == key), usual)
