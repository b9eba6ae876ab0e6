"""The twin's gradients, held against finite differences in double precision, operator by operator.

The models are onnx's own cases of one node, and a few of ours where it has none. Inputs are moved off the places
where two pieces of a function meet.
"""

from collections.abc import Iterator
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import FLOATS, TRAINING, UNSIGNED, Case, in_scope, with_one_input
from torch import Tensor, fx
from torch.autograd import gradcheck

from dgad_tk.common import UserError
from exporters.onnx_twin import to_torch
from exporters.onnx_twin.operators import OPERATORS

NO_GRADIENT = {
    "truth values": "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor",
    "integers, sizes and positions": (
        "ArgMax ArgMin BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor NonZero Range Shape Size"
    ),
    "steps": "Ceil Floor Hardmax Round Sign",
    "constants": "Constant ConstantOfShape EyeLike",
    "straight-through, which is no derivative; judged in test_onnx_twin_quantised.py": (
        "ConvInteger DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear "
        "com.microsoft.DequantizeLinear com.microsoft.DynamicQuantizeMatMul com.microsoft.MatMulIntegerToFloat "
        "com.microsoft.NhwcMaxPool com.microsoft.QGemm com.microsoft.QLinearAdd com.microsoft.QLinearAveragePool "
        "com.microsoft.QLinearConcat com.microsoft.QLinearConv com.microsoft.QLinearGlobalAveragePool "
        "com.microsoft.QLinearLeakyRelu com.microsoft.QLinearMul com.microsoft.QLinearSigmoid "
        "com.microsoft.QLinearSoftmax com.microsoft.QLinearWhere com.microsoft.QuantizeLinear"
    ),
}
"""Rows without a gradient, by the reason."""

EXCLUDED = TRAINING | UNSIGNED | {"test_attention_24_qk_matmul_output_mode3_softmax_precision"}
"""Models that are refused, or round to float32 by themselves, which finite differences see."""

LIMIT = 12
"""Checks of one operator: as many pairs of an input and an output, spread over its cases."""

BRANCH = helper.make_graph(
    [helper.make_node("Exp", ["x"], ["inner"])], "branch", [], [helper.make_empty_tensor_value_info("inner")]
)
OURS: dict[str, tuple[list[int], dict[str, list[int]], dict[str, Any]]] = {
    "GlobalLpPool": ([2, 3, 4, 4], {}, {"p": 3}),
    "SimplifiedLayerNormalization": ([2, 3, 4], {"scale": [4]}, {}),
    "Trilu": ([2, 3, 4], {}, {}),
    "com.microsoft.BiasGelu": ([2, 4], {"bias": [4]}, {}),
    "com.microsoft.FastGelu": ([2, 4], {"bias": [4]}, {}),
    "com.microsoft.FusedConv": ([2, 3, 5, 5], {"w": [4, 3, 3, 3], "b": [4]}, {"activation": "Sigmoid"}),
    "com.microsoft.FusedGemm": ([2, 3], {"w": [3, 4], "b": [4]}, {"activation": "Tanh"}),
    "com.microsoft.FusedMatMul": ([2, 3, 4], {"w": [2, 3, 4]}, {"transA": 1, "alpha": 0.5}),
    "com.microsoft.Gelu": ([2, 4], {}, {}),
    "com.microsoft.QuickGelu": ([2, 4], {}, {"alpha": 1.5}),
    "com.microsoft.SkipLayerNormalization": ([2, 3, 4], {"skip": [2, 3, 4], "scale": [4], "shift": [4]}, {}),
    "com.microsoft.SkipSimplifiedLayerNormalization": ([2, 3, 4], {"skip": [2, 3, 4], "scale": [4]}, {}),
}
"""Rows that onnx has no float case for: the sizes of `x`, those of constants, and attributes."""


def ours(name: str) -> tuple[onnx.ModelProto, Tensor]:
    shape, constants, attributes = OURS[name]
    domain, _, op_type = name.rpartition(".")
    node = helper.make_node(op_type, ["x", *constants], ["y"], domain=domain, **attributes)
    draw = torch.Generator().manual_seed(1)
    graph = helper.make_graph(
        [node],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(torch.randn(sizes, generator=draw).numpy(), constant)
            for constant, sizes in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets), torch.randn(shape, generator=draw)


def constant_branch() -> tuple[onnx.ModelProto, Tensor]:
    node = helper.make_node("If", ["condition"], ["y"], then_branch=BRANCH, else_branch=BRANCH)
    graph = helper.make_graph(
        [node],
        "if",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("condition", TensorProto.BOOL, [], [True])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), torch.rand(2, 3)


def models(name: str, cases: list[Case]) -> Iterator[tuple[onnx.ModelProto, Tensor]]:
    """Models of one float input and one float output, each with a value of that input."""
    if name in OURS:
        yield ours(name)
    if name == "If":
        yield constant_branch()
    pairs = [
        (case, output, kept)
        for case in cases
        for output, result in enumerate(case.outputs)
        for kept, value in enumerate(case.inputs)
        if result.data_type in FLOATS and value.data_type in FLOATS and case.name not in EXCLUDED
        if result.data_type in (value.data_type, TensorProto.DOUBLE)  # else it is rounded
    ]
    for case, output, kept in pairs[:: -(-len(pairs) // LIMIT) or 1]:
        yield with_one_input(case, output, kept)


def off_the_kinks(x: Tensor) -> Tensor:
    """`x` in double precision and away from zeros, ties and edges, but not out of a function's domain."""
    noise = 0.01 + 0.02 * torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.where(x.isfinite(), x, 0).double()
    return torch.where(x == 0, noise, x * (1 - noise)) if x.abs().max() <= 1 else x * (1 + noise) + (x == 0) * noise


def agrees(twin: fx.GraphModule, x: Tensor) -> bool:
    """Whether the gradient of a twin is its derivative; only one that is not zero everywhere says something.

    Raises:
        GradcheckError: it is another.
    """
    x.requires_grad_()
    y = twin(x)
    if not y.requires_grad or not y.isfinite().all():
        return False
    gradcheck(twin, (x,), atol=1e-4, rtol=1e-3, fast_mode=True)
    (gradient,) = torch.autograd.grad(y.sum() + (y * y).sum(), x)
    return bool((gradient != 0).any())


def cases_of_one_node() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {name: [] for name in OPERATORS}
    for case in in_scope("node"):
        if len(case.model.graph.node) == 1:
            found[case.operators.pop()].append(case)
    return found


def test_gradients_agree_with_finite_differences() -> None:
    """Every row but those listed has a gradient, and it is the derivative."""
    without = {name for names in NO_GRADIENT.values() for name in names.split()}
    checked, wrong = set(), []
    for name, cases in cases_of_one_node().items():
        if name in without:
            continue
        for model, x in models(name, cases):
            try:
                if x.numel() > 0 and agrees(to_torch(model).double(), off_the_kinks(x)):
                    checked.add(name)
            except UserError as error:
                if "has to be a constant" not in error.message:  # an amount, as in Pad, is no variable
                    raise
            except RuntimeError as error:
                wrong.append(f"{model.graph.name}, {x.shape}: {error}")
    assert wrong == []
    assert checked == set(OPERATORS) - without
