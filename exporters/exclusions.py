"""Which layers to leave in float: the few whose quantisation changes most answers to adversarial images.

The search has two parts. Each layer is quantised alone, and its harm is how far that moves the logits of adversarial
images. Then the most harmful are left in float, one more at a time, until the INT8 network agrees with the fp32 one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from dgad_tk.predictor import Images, Logits

ENOUGH = 0.99
"""Agreement on adversarial images at which the search is content."""
MOST = 4
"""Layers that are left in float at most: each breaks a chain of integer operators in two, and costs speed."""
RANKED_ON = 64
"""Images that the harm of each layer is measured on: a mean distance needs fewer of them than a share of answers."""
BATCH = 64

Quantise = Callable[[Sequence[str]], onnx.ModelProto]
"""The INT8 graph in which these nodes are left in float."""


@dataclass(frozen=True)
class Agreement:
    """How one network's answers compare with another's on the same images.

    Attributes:
        equal: share of equal predictions.
        distance: mean over the images of the largest difference of a logit.
    """

    equal: float
    distance: float


@dataclass(frozen=True)
class Exclusion:
    """One step of the search: the nodes left in float, and the agreement on adversarial images that this gave."""

    nodes: tuple[str, ...]
    agreement: float

    def as_dict(self) -> dict[str, Any]:
        return {"excluded": list(self.nodes), "adversarial_agreement": self.agreement}


def agreement(reference: Path | onnx.ModelProto, other: Path | onnx.ModelProto, images: Images) -> Agreement:
    """Compare two ONNX networks as ONNX Runtime runs them."""
    return _compare(_logits(reference, images), _logits(other, images))


def search(
    quantise: Quantise, nodes: Sequence[str], excluded: Sequence[str], reference: Path, images: Images
) -> list[Exclusion]:
    """Leave more and more nodes in float, the most harmful first.

    Args:
        quantise: makes an INT8 graph.
        nodes: that can be left in float.
        excluded: that are in any case.
        reference: the fp32 file.
        images: adversarial ones `(N, C, H, W)`.

    Returns:
        What was tried, the chosen one last: the first that agrees on ENOUGH of the images, else the best.
    """
    expected = _logits(reference, images)
    free = [name for name in nodes if name not in excluded]
    few, expected_of_few = images[:RANKED_ON], expected[:RANKED_ON]
    harm = {
        name: _compare(expected_of_few, _logits(quantise([other for other in nodes if other != name]), few)).distance
        for name in free
    }
    ranked = sorted(free, key=lambda name: -harm[name])
    tried: list[Exclusion] = []
    for count in range(min(MOST, len(ranked)) + 1):
        left_out = [name for name in nodes if name in excluded or name in ranked[:count]]
        found = _compare(expected, _logits(quantise(left_out), images)).equal
        tried.append(Exclusion(tuple(left_out), found))
        if found >= ENOUGH:
            return tried
    best = max(tried, key=lambda each: each.agreement)  # the first of equals has the fewest nodes
    return [*(each for each in tried if each is not best), best]


def _logits(model: Path | onnx.ModelProto, images: Images) -> Logits:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: np.ascontiguousarray(images[start : start + BATCH])})[0]
        for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


def _compare(reference: Logits, other: Logits) -> Agreement:
    equal = float((reference.argmax(axis=1) == other.argmax(axis=1)).mean())
    return Agreement(equal, float(np.abs(reference - other).max(axis=1).mean()))
