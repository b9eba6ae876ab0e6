"""The 8-bit input of a quantised file: what its numbers mean, and how pixels become such numbers.

TFLite, QNN and Vitis give a graph integers. The first operator says what they stand for: real value =
scale * (number - zero point). Pixels become numbers in one of two ways:

- as grey levels, 0 to 255 moved to the type's range. As a rule such a file is given these;
- normalised first, as `--mean`, `--std` and `--input-range` say, and then quantised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from dgad_tk.artifacts.preprocessing import UNIT_RANGE, Interface
from dgad_tk.ascent.rounding import rounded
from dgad_tk.common import UserError
from exporters.onnx_read.parts import MOVING, constants

GREY_LEVELS = (0.0, 255.0)
ENDS = {"uint8": (0, 255), "int8": (-128, 127)}
WITHOUT_SCALE = {"ConvInteger": {0: 2}, "MatMulInteger": {0: 2, 1: 3}}
"""For each input of these operators, which input is its zero point. The scale comes later, multiplied with others."""
NEAR = 0.02
"""Relative difference at which two scales mean the same: calibration sees the largest pixel, not always a white one."""
CLIPPED = 0.05
"""Share of the pixels' range that may be clipped, as the numbers cannot stand for it."""
FEW = 16
"""How many of the 256 numbers pixels have to become at least: no network is made for coarser images."""


@dataclass(frozen=True)
class Quantiser:
    """What the numbers of an input stand for.

    Attributes:
        scale, zero_point: None where no operator names one for all pixels.
    """

    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class Levels:
    """How pixels, as the interface makes them, become 8-bit numbers: `round(pixel / scale) + zero_point`, clipped.

    Attributes:
        low, high: ends of the type's range.
    """

    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def holds(self) -> tuple[float, float]:
        """The smallest and the largest pixel that is not clipped."""
        return self.scale * (self.low - self.zero_point), self.scale * (self.high - self.zero_point)

    def __call__(self, pixels: Tensor) -> Tensor:
        """The numbers, as floats; gradients pass through the rounding, where nothing is clipped."""
        steps = pixels if self.scale == 1 else pixels / self.scale
        numbers = rounded(steps) + self.zero_point
        clipped = numbers.detach().clamp(self.low, self.high)
        return torch.where(numbers == clipped, numbers, clipped)


def find_quantiser(graph: GraphProto, name: str) -> Quantiser | None:
    """What the first DequantizeLinear or QLinear operator that takes the input `name` says of its numbers."""
    found = constants(graph)
    same = {name}
    for node in graph.node:
        for slot, taken in enumerate(node.input):
            if taken not in same:
                continue
            if node.op_type in MOVING and slot == 0:
                same.update(node.output)
            elif node.op_type in ("DequantizeLinear", "QGemm") or node.op_type.startswith("QLinear"):
                return _quantiser(node, found, slot + 1, slot + 2)
            elif slot in WITHOUT_SCALE.get(node.op_type, {}):
                return _quantiser(node, found, None, WITHOUT_SCALE[node.op_type][slot])
    return None


def _quantiser(node: NodeProto, constants: Mapping[str, TensorProto], scale: int | None, zero_point: int) -> Quantiser:
    zeros, found = _single(node, constants, zero_point), None if scale is None else _single(node, constants, scale)
    if zeros is None and zero_point < len(node.input) and node.input[zero_point]:
        return Quantiser(None, None)  # one per channel, or computed
    usable = found is not None and np.isfinite(found) and found > 0
    return Quantiser(found if usable else None, int(zeros or 0))


def _single(node: NodeProto, constants: Mapping[str, TensorProto], slot: int) -> float | None:
    """The one number that all entries of a constant input are."""
    proto = constants.get(node.input[slot]) if slot < len(node.input) else None
    values = np.unique(numpy_helper.to_array(proto).astype(np.float64)) if proto is not None else np.empty(0)
    return float(values[0]) if len(values) == 1 else None


def eight_bits(
    interface: Interface, type: str, graph: GraphProto, name: str, where: str
) -> tuple[Interface, Levels, str]:
    """How pixels become the numbers of an input of 8 bits.

    Args:
        interface: as asked for.
        type: of ENDS.
        graph: the graph that has the input `name`.

    Returns:
        The interface with the range that pixels are brought to; the numbers they become; a doubt about both, or "".

    Raises:
        UserError: pixels are to be normalised, and the graph does not say what numbers they become.
    """
    low, high = ENDS[type]
    quantiser = find_quantiser(graph, name)
    if interface.mean or interface.std or interface.input_range not in (UNIT_RANGE, GREY_LEVELS):
        if quantiser is None or quantiser.scale is None or quantiser.zero_point is None:
            raise UserError(
                f"'{where}' takes {type}, and its graph names no scale for all of it: grey levels, not normalised",
                hint="leave out --mean, --std and --input-range for it",
            )
        levels = Levels(quantiser.scale, quantiser.zero_point, low, high)
        return interface, levels, _doubt_of_range(levels, interface)
    # Whoever names the range of grey levels knows what he gives.
    sure = quantiser is None or interface.input_range == GREY_LEVELS
    doubt = "" if sure or quantiser is None else _doubt_of_grey(quantiser, low)
    return replace(interface, input_range=GREY_LEVELS), Levels(1.0, low, low, high), doubt


def _doubt_of_grey(quantiser: Quantiser, low: int) -> str:
    """What to say of a file whose numbers stand for something else than pixels from 0 to 1 or from 0 to 255."""
    scale, zero_point = quantiser.scale, quantiser.zero_point
    if zero_point == low and scale is not None and any(abs(scale / grey - 1) <= NEAR for grey in (1 / 255, 1.0)):
        return ""
    stand_for = ""
    if scale is not None and zero_point is not None:
        ends = Levels(scale, zero_point, low, low + 255).holds
        stand_for = f" (they stand for {ends[0]:.3g} to {ends[1]:.3g})"
    return (
        f"the file's 8-bit numbers have {f'scale {scale:g}' if stand_for else 'no one scale'} and zero point "
        f"{'none for all channels' if zero_point is None else zero_point}{stand_for}, which are no grey "
        "levels, and it is given grey levels: if it was trained on normalised images, its answers are wrong until "
        "--mean and --std name the normalisation (--std 1 for none)"
    )


def _doubt_of_range(levels: Levels, interface: Interface) -> str:
    """What to say where normalised pixels do not fit what the numbers can stand for; empty where they do."""
    channels = max(len(interface.mean), len(interface.std), 1)
    black_and_white = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, channels, 1, 1)
    least, most = (float(end) for end in interface.preprocessing(channels)(black_and_white).aminmax())
    low, high = levels.holds
    clipped = max(low - least, most - high) > CLIPPED * (most - least)
    if not clipped and most - least >= FEW * levels.scale:
        return ""
    return (
        f"pixels come to {least:.3g} to {most:.3g}, and the file's 8-bit numbers stand for {low:.3g} to {high:.3g} "
        f"(scale {levels.scale:g}, zero point {levels.zero_point}): "
        f"{'the rest is clipped' if clipped else 'few numbers are left'}; are --mean and --std right?"
    )
