"""OPTIMIZERS: what may move the weights. A new one is a class of torch.optim and a row here. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dgad_tk.common import lookup


@dataclass(frozen=True)
class Optimizer:
    """A row of OPTIMIZERS. Each takes `lr` and `weight_decay` too.

    Attributes:
        description: one line.
        torch_name: name of the class in torch.optim.
        takes: its further arguments, each with the key of a config that sets it.
        defaults: keys of a config whose defaults, the dataset's too, are made for SGD, with the values for this one.
    """

    description: str
    torch_name: str
    takes: Mapping[str, str]
    defaults: Mapping[str, float] = field(default_factory=dict)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(
        description="stochastic gradient descent with momentum; weight decay is part of the gradient",
        torch_name="SGD",
        takes={"momentum": "momentum", "nesterov": "nesterov"},
    ),
    "adamw": Optimizer(
        description="Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)",
        torch_name="AdamW",
        takes={"betas": "adam_betas", "eps": "adam_eps"},
        defaults={"lr": 1e-3, "weight_decay": 1e-2},
    ),
}


def checked_optimizer(name: str) -> str:
    """The name of a row of OPTIMIZERS; UserError for another."""
    lookup(OPTIMIZERS, name, "optimizer")
    return name
