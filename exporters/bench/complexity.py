"""What a network costs by counting: parameters, and the multiply-adds of one image.

The convention is the one of the papers and of torchvision's tables: a multiplication and the addition after it are one,
and only convolutions and matrix products count. `torch.utils.flop_counter` counts them while a module runs, and calls
the same thing two operations. Of an ONNX file it is the differentiable twin that runs. What a graph computes of
constants alone is computed once, when the twin is made, and does not count.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper
from torch import fx, nn
from torch.fx.node import Target
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dgad_tk.artifacts.predictor import Images
from dgad_tk.common import UserError
from exporters.onnx_read.parts import graphs, inlined, nodes
from exporters.onnx_read.runtime_memory import session_options
from exporters.onnx_twin import to_torch
from exporters.onnx_twin.operators.resampling import resampled

Shape = tuple[int, ...]
LIMIT = 2**31
"""Bytes of the largest graph that protobuf serialises."""

_QUANTISED = {
    "DequantizeLinear": (0,),
    "ConvInteger": (1,),
    "DynamicQuantizeMatMul": (1, 4),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1, 6),
    "QGemm": (0, 3, 6),
    "QLinearAdd": (0, 3),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "QLinearMul": (0, 3),
}
"""Operators of quantised numbers: which of their inputs are these numbers; the others are scales and zero points."""
_NOT_WEIGHTS = {"BatchNormalization": (3, 4), "QuantizeLinear": (1, 2), "Resize": (1, 2), "Upsample": (1,)}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Complexity:
    """Counts of one network.

    Attributes:
        parameters: numbers that were trained, however they are stored: a quantised weight is one, its scale and zero
            point are none. BatchNorm counts as the file has it: scale and shift where it stands, nothing more than a
            bias where it is folded, its running statistics never. Constants of an ONNX graph count when they are float
            tensors of rank 1 or more, since a graph does not tell a parameter from a buffer such as the
            normalisation's mean.
        weights: type in which most of them are stored: "float32", "float16", "int8", ...
        multiply_adds: of one image, in convolutions and matrix products, biases left out; None of an ONNX graph that
            has no twin.
    """

    parameters: int
    weights: str
    multiply_adds: int | None


def module_complexity(module: nn.Module, sample: Shape) -> Complexity:
    """Counts of a torch module, eager, TorchScript or exported, that takes float32 `(N, *sample)`."""
    stored = {id(parameter): parameter for parameter in module.parameters()}.values()
    types: Counter[str] = Counter()
    for parameter in stored:
        types[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    device = next((parameter.device for parameter in stored), torch.device("cpu"))
    with _counting() as counter:
        module(torch.zeros(1, *sample, device=device))
    return Complexity(types.total(), _commonest(types), counter.get_total_flops() // 2)


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Count the operations of what runs inside, at two per multiply-add.

    Attention becomes plain matrix products: the counter knows nothing of the fused kernels of a CPU.
    """
    fast, aten = torch.backends.mha.get_fastpath_enabled(), torch.ops.aten
    counter = FlopCounterMode(display=False, custom_mapping={aten.mv: _of_vectors, aten.dot: _of_vectors})
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _of_vectors(a: Shape, b: Shape, **_: Any) -> int:
    """Operations of a product with a vector, which torch's counter leaves out."""
    return 2 * math.prod(a)


class _Counted(fx.Interpreter):
    """Runs a twin and counts. Interpolation is left out: it multiplies too, but not by weights of the network."""

    operations = 0

    def call_function(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _counting() as counter:
            result = super().call_function(target, args, kwargs)
        self.operations += 0 if target is resampled else counter.get_total_flops()
        return result


def onnx_complexity(proto: onnx.ModelProto, blank: Images, images: int | None = None) -> Complexity:
    """Counts of an ONNX graph, floats or quantised.

    Args:
        blank: what the graph takes, of its input's type.
        images: how many these are; None where its first axis counts them.

    Raises:
        Exception: whatever ONNX Runtime raises where the graph does not take `blank`.
    """
    if proto.ByteSize() < LIMIT:
        _try(proto, blank)
    types = _stored_parameters(inlined(proto))
    multiply_adds = None
    with suppress(UserError, RuntimeError, ValueError, IndexError):  # no twin, or one that takes less than the file
        twin = _Counted(to_torch(proto))
        twin.run(torch.from_numpy(blank))
        multiply_adds = twin.operations // 2 // (images or len(blank))
    return Complexity(types.total(), _commonest(types), multiply_adds)


def _commonest(types: Counter[str]) -> str:
    return types.most_common(1)[0][0] if types else "none"


def _try(proto: onnx.ModelProto, blank: Images) -> None:
    """Run ONNX Runtime once, with no optimisation."""
    options = session_options(level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, bounded=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: blank})


def _stored_parameters(proto: onnx.ModelProto) -> Counter[str]:
    """Numbers that were trained, by the type they are stored in."""
    constants = {tensor.name: tensor for graph in graphs(proto.graph) for tensor in graph.initializer}
    for node in nodes(proto.graph):
        if node.op_type == "Constant":
            constants.update((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
    weights = {name: constants[name] for node in nodes(proto.graph) for name in _weights(node, constants)}
    types: Counter[str] = Counter()
    for tensor in weights.values():
        types[str(helper.tensor_dtype_to_np_dtype(tensor.data_type))] += math.prod(tensor.dims)
    return types


def _weights(node: NodeProto, constants: Mapping[str, TensorProto]) -> Iterator[str]:
    """The names of the node's inputs that are weights."""
    quantised = _QUANTISED.get(node.op_type, () if node.op_type.startswith("QLinear") else None)
    for slot, name in enumerate(node.input):
        tensor = constants.get(name)
        if tensor is None or slot in _NOT_WEIGHTS.get(node.op_type, ()):
            continue
        if (tensor.data_type in _FLOATS and tensor.dims) if quantised is None else slot in quantised:
            yield name
