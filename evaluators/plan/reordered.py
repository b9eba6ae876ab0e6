"""A surrogate whose record has the classes in another order than the model that is attacked."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dgad_tk.artifacts.predictor import Images, Logits, Predictor
from dgad_tk.strangers.names import composed


class Reordered(nn.Module):
    """Logits of a module in another order.

    Args:
        net: gives logits `(N, K)`.
        columns: for each class, the logit of `net` that is its own; K for a class that `net` does not know, which gets
            a logit below all others.
    """

    def __init__(self, net: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.columns: Tensor
        self.register_buffer("columns", torch.tensor(columns))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return torch.cat([logits, logits.amin(dim=1, keepdim=True) - 1], dim=1)[:, self.columns]


def reordered(predictor: Predictor, classes: Sequence[str]) -> Predictor | None:
    """A predictor with a record, its classes put in the order of `classes`; None if it knows others.

    `classes` may have more of them than the record, such as one without images.
    """
    if predictor.artifact is None or predictor.finish is not None:
        return None
    own = {composed(name): place for place, name in enumerate(predictor.artifact.classes)}
    columns = [own.get(composed(name), len(own)) for name in classes]
    if sorted(set(columns) - {len(own)}) != list(range(len(own))):
        return None

    def in_order(answer: Callable[[Images], Logits]) -> Callable[[Images], Logits]:
        def answers(images: Images) -> Logits:
            logits = answer(images)
            lowest = logits.min(axis=1, keepdims=True) - 1
            return np.ascontiguousarray(np.concatenate([logits, lowest], axis=1)[:, columns])

        return answers

    module = None
    if predictor.module is not None:
        device = next((value.device for value in predictor.module.state_dict().values()), torch.device("cpu"))
        module = Reordered(predictor.module, columns).to(device).eval()
    return replace(
        predictor,
        predict=in_order(predictor.predict),
        search=None if predictor.search is None else in_order(predictor.search),
        module=module,
        classes=len(columns),
        network=None,
    )
