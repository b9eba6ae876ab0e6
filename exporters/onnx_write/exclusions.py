"""Which layers to leave in float: the few whose quantisation changes most answers to adversarial images.

The search has two parts. Each layer is quantised alone, and its harm is how far that moves the logits of adversarial
images. Then the most harmful are left in float, one more at a time, until the INT8 network agrees with the fp32 one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from dgad_tk.artifacts.predictor import Images, Logits
from exporters.onnx_write.values import values_of

ENOUGH = 0.99
"""Agreement on adversarial images at which the search stops."""
MOST = 4
"""Layers that are left in float at most: each breaks a chain of integer operators in two, and costs speed."""
RANKED_ON = 64
"""Images that the harm of each layer is measured on: a mean distance needs fewer of them than a share of answers."""

Quantise = Callable[[Sequence[str]], onnx.ModelProto]
"""The INT8 graph in which these nodes are left in float."""


@dataclass(frozen=True)
class Exclusion:
    """One step of the search: the nodes left in float, and the agreement on adversarial images that this gave."""

    nodes: tuple[str, ...]
    agreement: float


def logits_of(model: onnx.ModelProto, images: Images) -> Logits:
    """What ONNX Runtime answers, `(N, K)`."""
    name = model.graph.output[0].name
    return np.concatenate([values[name] for values in values_of(model, [name], images)])


def agreement(reference: Logits, other: Logits) -> float:
    """The share of images that two networks with these logits `(N, K)` predict alike."""
    return float((reference.argmax(axis=1) == other.argmax(axis=1)).mean())


def find_exclusions(
    quantise: Quantise, nodes: Sequence[str], excluded: Sequence[str], expected: Logits, images: Images
) -> list[Exclusion]:
    """Leave more and more nodes in float, the most harmful first.

    Args:
        nodes: that can be left in float.
        excluded: nodes that are left in float in any case.
        expected: logits `(N, K)` of the fp32 network for `images`.
        images: adversarial ones `(N, C, H, W)`.

    Returns:
        What was tried, the chosen one last: the first that agrees on ENOUGH of the images, else the best.
    """

    def harm(name: str) -> float:
        """Mean over the images of the largest difference of a logit, where this node alone is quantised."""
        alone = logits_of(quantise([other for other in nodes if other != name]), images[:RANKED_ON])
        return float(np.abs(expected[:RANKED_ON] - alone).max(axis=1).mean())

    ranked = sorted((name for name in nodes if name not in excluded), key=harm, reverse=True)
    tried: list[Exclusion] = []
    for count in range(min(MOST, len(ranked)) + 1):
        left_out = tuple(name for name in nodes if name in excluded or name in ranked[:count])
        tried.append(Exclusion(left_out, agreement(expected, logits_of(quantise(left_out), images))))
        if tried[-1].agreement >= ENOUGH:
            return tried
    best = max(tried, key=lambda each: each.agreement)  # the first of equals has the fewest nodes
    return [*(each for each in tried if each is not best), best]
