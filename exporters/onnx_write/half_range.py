"""Whether a network's activations fit float16, whose largest number is 65,504.

On a CPU, a comparison of logits does not tell: ONNX Runtime casts to float32 and back, fuses operators in between, and
never sees an overflow that a GPU will see. So the float32 graph that the file is made from is run on the images that
exports are compared on, and every value between its operators is looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from dgad_tk.artifacts.predictor import Images
from exporters.onnx_write.values import describe_node, scopes_of, values_of

LARGEST = float(np.finfo(np.float16).max)
NEAR = LARGEST / 4
"""Above this an export warns: other images than those that were looked at may give larger values."""
HELD = 8
"""Images of which all values are held at once."""


@dataclass(frozen=True)
class Peak:
    """The largest value that an operator gave.

    Attributes:
        layer: module of the source; empty if the graph does not say.
        place: the operator, for people.
        images: name of the set of images that it was found on.
    """

    value: float
    layer: str
    place: str
    images: str

    def __str__(self) -> str:
        layer = f"{self.layer} ({self.place})" if self.layer else self.place
        return f"{self.value:,.0f} at {layer} on {self.images} images"


def activation_peaks(proto: onnx.ModelProto, sets: Mapping[str, Images]) -> list[Peak]:
    """The largest value of every operator that gives float numbers, in the order of the graph.

    Args:
        proto: float32. It is not changed.
        sets: images `(N, C, H, W)` by name.
    """
    made = [(node, name) for node in proto.graph.node for name in node.output if name and node.op_type != "Constant"]
    plain = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: dict[str, tuple[float, str]] = {}
    for set_name, images in sets.items():
        for values in values_of(proto, [name for _, name in made], images, at_a_time=HELD, level=plain):
            for name, value in values.items():
                if value.dtype.kind == "f" and value.size:
                    largest = float(np.nan_to_num(np.abs(value).max(), nan=np.inf))
                    found[name] = max(found.get(name, (0.0, set_name)), (largest, set_name), key=lambda each: each[0])
    return [
        Peak(found[name][0], next(iter(scopes_of(node)[::-1]), ""), describe_node(node), found[name][1])
        for node, name in made
        if name in found
    ]


def judge_range(peaks: Sequence[Peak]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What makes a half-precision file wrong, and what to warn of.

    Args:
        peaks: one at least.
    """
    beyond = [peak for peak in peaks if peak.value > LARGEST]
    if beyond:
        more = f", and {len(beyond) - 1} operators behind it go beyond too" if len(beyond) > 1 else ""
        return (f"float16 ends at {LARGEST:,.0f}, and in float32 there is {beyond[0]}{more}",), ()
    largest = max(peaks, key=lambda peak: peak.value)
    if largest.value <= NEAR:
        return (), ()
    doubt = (
        f"float16 ends at {LARGEST:,.0f}, and in float32 there is {largest}: other images may overflow on a device "
        "that computes in float16"
    )
    return (), (doubt,)
