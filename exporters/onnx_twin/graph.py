"""The walk over an ONNX graph: from its nodes to an `fx.GraphModule`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto
from torch import Tensor, fx

from dgad_tk.common import UserError
from exporters.onnx_read.parts import inlined, names_read, own_domain
from exporters.onnx_twin.convolutions import drop_unused, fold_batch_norm
from exporters.onnx_twin.node import NodeView, describe
from exporters.onnx_twin.operators import OPERATORS, TAKE_SIZES
from exporters.onnx_twin.size_operators import on_sizes
from exporters.onnx_twin.sizes import Sizes, as_tensor
from exporters.onnx_twin.tensors import CLASSIFIER, DTYPES, HINT, check_tensor, examples, from_proto, image_of
from exporters.onnx_twin.tracing import Recorder, call, example, limited

Rewriting = Callable[[Iterable[NodeProto], Mapping[str, Any]], Iterable[NodeProto]]
"""Takes the nodes and the values by name, which grow as nodes run, and gives the nodes to run instead."""


def to_torch(model: ModelProto, rewriting: Rewriting | None = None, *, folded: bool = True) -> fx.GraphModule:
    """The twin of an ONNX image classifier.

    Args:
        model: with its tensors inside. It is not changed.
        rewriting: replaces nodes while they run; by default none.
        folded: put each BatchNorm into the convolution before it, as ONNX Runtime does. False for a twin to train.

    Returns:
        A module in eval mode that takes the graph's input, for images `(N, C, H, W)`, and returns its first
        output. Weights are buffers, named after the ONNX initializers; none requires a gradient. The batch is free
        as far as the nodes allow, and every other size that the file declares is taken for granted.

    Raises:
        UserError: it uses an operator, an attribute or a type that the twin does not have, its graph is
            malformed, or it has not exactly one input.
    """
    model = inlined(model)
    graph = model.graph
    opsets = {own_domain(entry.domain): entry.version for entry in model.opset_import}
    if not graph.output:
        raise UserError("the ONNX graph has no output", hint=CLASSIFIER)
    output = graph.output[0]
    check_tensor(output, "output")
    nodes = _nodes_for([output.name], graph, opsets)
    image = image_of(graph)
    walk = _Walk(opsets, image)
    recorder, values = walk.recorder, {image.name: walk.image}
    with limited():
        walk.run(graph, nodes if rewriting is None else rewriting(nodes, values), values)
        result = walk.tensor(_value(values, output.name, "the graph's output"))
        dtype, found = DTYPES.get(output.type.tensor_type.elem_type), example(result)
        integers = dtype is not None and not dtype.is_floating_point and dtype is not torch.bool
        if integers and found is not None and found.is_floating_point():  # quantised integers are floats on the way
            result = call(Tensor.to, result, dtype)
    recorder.graph.output(recorder.create_arg(result))
    for node in recorder.graph.nodes:
        node.meta.clear()  # the examples were guesses
    constants = {name: tensor.detach() for name, tensor in recorder.constants.items()}
    twin = fx.GraphModule(constants, recorder.graph, "OnnxTwin").eval()
    if folded:
        fold_batch_norm(twin)
    drop_unused(twin)  # `rewriting` leaves the nodes that it replaced
    return twin


class _Walk:
    """Runs nodes in order. `tracing` says what the values between them are, and `sizes` what else they may be."""

    def __init__(self, opsets: Mapping[str, int], image: ValueInfoProto) -> None:
        self.recorder = Recorder(fx.Graph())
        self.image: Any = self.recorder.placeholder(image.name, examples(image))
        self._opsets = opsets
        self._device: Any = None

    def device(self) -> torch.device:
        """The device that the twin runs on, as a value of the graph."""
        if self._device is None:
            self._device = call(getattr, self.image, "device")
        return self._device  # type: ignore[no-any-return]

    def tensor(self, value: Any) -> Any:
        """`value` as a tensor."""
        return as_tensor(value, self.device) if isinstance(value, Sizes) else value

    def run(self, graph: GraphProto, nodes: Iterable[NodeProto], values: dict[str, Any]) -> None:
        """Add what `nodes` of `graph` compute to `values`, by name."""
        initializers = {proto.name: proto for proto in graph.initializer}
        for proto in nodes:
            for name in names_read(proto):
                if name in initializers and name not in values:
                    values[name] = from_proto(initializers[name])
                    self.recorder.suggest(values[name], name)
            opset = self._opsets.get(own_domain(proto.domain), 0)
            node = NodeView(proto, opset, self.device, partial(self._branch, values))
            inputs = [_value(values, name, str(node)) if name else None for name in proto.input]
            results = self._outputs(node, inputs)
            for index, name in enumerate(proto.output):
                values[name] = results[index] if index < len(results) else _Missing(f"output {index} of {node}")
                if isinstance(values[name], Tensor):
                    self.recorder.suggest(values[name], name)

    def _branch(self, values: Mapping[str, Any], graph: GraphProto) -> tuple[Any, ...]:
        """The outputs of a subgraph, which sees `values` and adds none."""
        wanted = [info.name for info in graph.output]
        nodes = _nodes_for(wanted, graph, self._opsets)
        inner = {proto.name: from_proto(proto) for proto in graph.initializer if proto.name in wanted}
        inner.update(values)
        self.run(graph, nodes, inner)
        return tuple(_value(inner, name, f"the end of '{graph.name}'") for name in wanted)

    def _outputs(self, node: NodeView, inputs: list[Any]) -> tuple[Any, ...]:
        """What `node` computes, one value per output; those that it cannot compute are left out."""
        try:
            result = self._result(node, inputs)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, ArithmeticError) as error:
            # Inputs that do not fit each other: the file's fault as a rule, and the cause stays attached.
            raise UserError(f"the twin cannot run {node}: {error}", hint=HINT) from error
        node.check_read()
        return result if isinstance(result, tuple) else (result,)

    def _result(self, node: NodeView, inputs: list[Any]) -> Any:
        key = operator_key(node.domain, node.op_type)
        if any(isinstance(value, Sizes) for value in inputs):
            result = on_sizes(node, inputs)
            if result is not None:
                return result
            kept = TAKE_SIZES.get(key, len(inputs))
            inputs = [*(self.tensor(value) for value in inputs[:kept]), *inputs[kept:]]
        return OPERATORS[key](node, *inputs)


def operator_key(domain: str, op_type: str) -> str:
    """The name of an operator in the table: `Relu`, `com.microsoft.QLinearAdd`."""
    return f"{domain}.{op_type}" if domain else op_type


@dataclass(frozen=True)
class _Missing:
    """An output that the twin does not compute; only asking for it is an error."""

    what: str


def _value(values: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in values:
        raise UserError(
            f"the ONNX graph is malformed: nothing before {where} gives '{name}'",
            hint="export the model again",
        )
    if isinstance(values[name], _Missing):
        raise UserError(f"the twin does not compute {values[name].what}", hint=HINT)
    return values[name]


def _nodes_for(wanted: Iterable[str], graph: GraphProto, opsets: Mapping[str, int]) -> list[NodeProto]:
    """The nodes that `wanted` depend on, in the graph's order, once all their operators are in the table."""
    needed = set(wanted)
    found: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(names_read(node))
            found.append(node)
    found.reverse()
    unknown: dict[str, str] = {}
    for node in found:
        domain = own_domain(node.domain)
        key = operator_key(domain, node.op_type)
        if key not in OPERATORS:
            unknown.setdefault(key, describe(node.op_type, domain, opsets.get(domain, 0), node.name))
    if unknown:
        what = "operator" if len(unknown) == 1 else "operators"
        raise UserError(f"the twin has no {what} " + "; ".join(unknown.values()), hint=HINT)
    return found
