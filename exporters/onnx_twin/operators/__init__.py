"""The table of operators.

An operator is a function of a node and its inputs, `None` for one that is left out, to its output or a
tuple of them. Its name is its ONNX name, with the domain in front where that is not the default one
(`com.microsoft.QLinearAdd`). What it may do:

- compute with torch functions through `tracing.call`, or through a function marked `deferred` where it
  needs the sizes, rank or dtype of what it gets; then known inputs give known outputs and everything else
  becomes nodes of the twin. Arguments are what an fx node can hold: tensors, numbers, strings, dtypes, and
  lists of them;
- read attributes through the node, every one of them, since one that is left unread is refused;
- `node.refuse(...)` what it does not implement. Correct or refused, never nearly right.

The families below each have a literal table; a new family is one more line here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from exporters.onnx_twin.operators import (
    activations,
    attention,
    bits,
    constants,
    contrib,
    control,
    convolutions,
    cumulative,
    elementwise,
    fusions,
    indexing,
    layout,
    normalisation,
    pooling,
    products,
    quantised,
    reductions,
    resampling,
    resizing,
    shapes,
)

Operator = Callable[..., Any]


def _merged(*tables: Mapping[str, Operator]) -> dict[str, Operator]:
    """All rows of all tables.

    Raises:
        ValueError: two tables have the same operator.
    """
    merged: dict[str, Operator] = {}
    for table in tables:
        for name, operator in table.items():
            if name in merged:
                raise ValueError(f"operator '{name}' is in two tables")
            merged[name] = operator
    return merged


OPERATORS = _merged(
    activations.OPERATORS,
    attention.OPERATORS,
    bits.OPERATORS,
    constants.OPERATORS,
    contrib.OPERATORS,
    control.OPERATORS,
    convolutions.OPERATORS,
    cumulative.OPERATORS,
    elementwise.OPERATORS,
    fusions.OPERATORS,
    indexing.OPERATORS,
    layout.OPERATORS,
    normalisation.OPERATORS,
    pooling.OPERATORS,
    products.OPERATORS,
    quantised.OPERATORS,
    reductions.OPERATORS,
    resampling.OPERATORS,
    resizing.OPERATORS,
    shapes.OPERATORS,
)

TAKE_SIZES = frozenset((*shapes.OPERATORS, *resizing.OPERATORS, *resampling.OPERATORS))
"""Operators that take sizes as they are; every other one gets them as a tensor."""
