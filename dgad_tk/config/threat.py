"""The threat model that a model is trained for: norm, radius, steps."""

import math
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dgad_tk.config.parsing import TypedKeys
from dgad_tk.strangers.number_text import parse_fraction

Radius = Annotated[float, BeforeValidator(partial(parse_fraction, upper=math.inf)), Field(gt=0)]
"""A distance for pixels in [0, 1]; `8/255` is accepted. In L2 and L1 it may be above 1."""

LARGEST_EPS = 1e7
"""Of an evaluation. Even in L1, two images of 3 x 1024 x 1024 are at most 3,145,728 apart."""

Norm = Literal["linf", "l2", "l1", "l0"]
"""Norm of a perturbation. `dgad_tk.ascent.balls` computes with all but L0.

L0 is the number of values that differ, of all channels: a coloured pixel has three."""

TeacherInAttack = Literal["exact", "linear", "none"]
"""How a training attack asks the teacher (`dgad_tk.methods.guided`)."""


class ThreatModel(TypedKeys):
    """The perturbations allowed, and the steps of the inner maximisation.

    The paper's setting on colour images is Linf 8/255 in 10 steps of 2/255.
    """

    norm: Norm = "linf"
    eps: Radius
    step_size: Radius
    steps: int = Field(10, ge=1)

    @field_validator("norm")
    @classmethod
    def _trainable(cls, norm: Norm) -> Norm:
        if norm == "l0":
            raise ValueError("nothing is trained in l0: expected linf, l2 or l1")
        return norm

    @model_validator(mode="after")
    def _within_the_pixels(self) -> Self:
        if self.norm == "linf":
            parse_fraction(self.eps)
        return self

    @classmethod
    def of(cls, norm: Norm, eps: float, steps: int = 10) -> Self:
        """A threat model with the default step size of eps / 4."""
        return cls(norm=norm, eps=eps, step_size=eps / 4, steps=steps)
