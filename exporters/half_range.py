"""Whether a network's activations fit float16, whose largest number is 65,504.

Where no device computes in float16, a comparison of logits says nothing of that: ONNX Runtime's CPU provider casts to
float32 and back, fuses operators in between, and never sees an overflow that a GPU will. So the float32 graph that the
file is made from is run on the images that exports are compared on, and every value between its operators is looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from dgad_tk.predictor import Images
from exporters.divergence import describe_node, scopes_of

LARGEST = float(np.finfo(np.float16).max)
NEAR = LARGEST / 4
"""Above this an export warns: the images of a deployment are others than those that were looked at."""
BATCH = 8
"""All values of so many images are held at once."""


@dataclass(frozen=True)
class Peak:
    """The largest value that an operator gave.

    Attributes:
        layer: module of the source, where the graph says.
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
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    given = {output.name for output in proto.graph.output}
    made = [(node, name) for node in proto.graph.node for name in node.output if name and node.op_type != "Constant"]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for _, name in made if name not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, tuple[float, str]] = {}
    for set_name, images in sets.items():
        for values in _run(session, [name for _, name in made], images):
            for name, value in values.items():
                if value.dtype.kind == "f" and value.size:
                    largest = float(np.nan_to_num(np.abs(value).max(), nan=np.inf))
                    found[name] = max(found.get(name, (0.0, set_name)), (largest, set_name), key=lambda each: each[0])
    return [
        Peak(found[name][0], next(iter(scopes_of(node)[::-1]), ""), describe_node(node), found[name][1])
        for node, name in made
        if name in found
    ]


def judge_range(peaks: list[Peak]) -> tuple[list[str], list[str]]:
    """What makes a half-precision file wrong, and what to warn of."""
    beyond = [peak for peak in peaks if peak.value > LARGEST]
    if beyond:
        more = f", and {len(beyond) - 1} operators behind it go beyond too" if len(beyond) > 1 else ""
        return [f"float16 ends at {LARGEST:,.0f}, and in float32 there is {beyond[0]}{more}"], []
    largest = max(peaks, key=lambda peak: peak.value, default=None)
    if largest is None or largest.value <= NEAR:
        return [], []
    return [], [
        f"float16 ends at {LARGEST:,.0f}, and in float32 there is {largest}: other images may overflow on a device "
        "that computes in float16"
    ]


def _run(session: onnxruntime.InferenceSession, names: list[str], images: Images) -> Iterator[dict[str, Any]]:
    name = session.get_inputs()[0].name
    for start in range(0, len(images), BATCH):
        answers = session.run(names, {name: np.ascontiguousarray(images[start : start + BATCH])})
        yield dict(zip(names, answers, strict=True))
