"""The table of operators.

An operator is a function of a node and its inputs to its output, or to a tuple of its outputs. An input that is left
out is None. The operator's name is ONNX's, with the domain in front where that is not the default one
(`com.microsoft.QLinearAdd`). Most operators are one torch function, and `row` writes these in a line. Others may:

- compute with torch functions through `tracing.call`, or through a function marked `deferred` where it needs the
  sizes, rank or dtype of what it gets. Known inputs give known outputs, and everything else becomes nodes of the twin.
  Arguments are what an fx node can hold: tensors, numbers, strings, dtypes, and lists of them;
- read attributes through the node. Every one has to be read: one that is left unread is refused;
- refuse what they do not implement, by `node.refuse(...)`. Correct or refused, never nearly right.

Each family below has a table, `OPERATORS`. A new family is one more line here.
"""

from exporters.onnx_twin.operators import (
    activations,
    attention,
    constants,
    contrib,
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
    shapes,
)
from exporters.onnx_twin.operators.row import Operator

_FAMILIES = (
    *(activations, attention, constants, contrib, elementwise, fusions, indexing, layout),
    *(normalisation, pooling, products, quantised, reductions, resampling, shapes),
)

OPERATORS: dict[str, Operator] = {}
for _family in _FAMILIES:
    if _twice := OPERATORS.keys() & _family.OPERATORS.keys():
        raise ValueError(f"operators in two tables: {_twice}")
    OPERATORS |= _family.OPERATORS

LEARNED = products.LEARNED | normalisation.LEARNED | activations.LEARNED
"""Functions of a twin, and which of their arguments are what training learns, where these are constants."""

TAKE_SIZES = {
    "AffineGrid": 1,
    "ConstantOfShape": 0,
    "Expand": 1,
    "Pad": 1,
    "Range": 0,
    "Reshape": 1,
    "Resize": 1,
    "Slice": 1,
    "Split": 1,
    "Tile": 1,
    "Upsample": 1,
}
"""Operators that take `Sizes` as they are, and from which input on; all other inputs come as tensors."""
