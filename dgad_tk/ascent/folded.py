"""BatchNorm folded into the convolution before it: the same function in eval mode, with less to compute.

The inner maximisation runs a network ten times and more between two changes of its weights. So it pays to fold the
network and to lay out its weights channels-last once per change. The result differs from the network in eval mode by
rounding alone.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dgad_tk.ascent.frozen_conv import FrozenConv2d, is_plain, rectify_in_place
from dgad_tk.ascent.recorded import Recorded

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Folded(nn.Module):
    """A frozen copy of `source` in eval mode without the BatchNorms that follow a convolution.

    Args:
        source: any module; one that `torch.fx` cannot trace is copied as it is, and so is one whose graph turns out, at
            the first images, to answer otherwise.
        compiled: compile with torch.compile at the first call; otherwise convolutions are frozen.
        recorded: on a card, replay passes as CUDA graphs; not if compiled.
        note: gets a sentence if that cannot be done.
    """

    def __init__(
        self,
        source: nn.Module,
        *,
        compiled: bool = False,
        recorded: bool = False,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        self._in_place, self._compiled, self._recorded = recorded, compiled, recorded and not compiled
        self._note, self._layout = note, torch.channels_last
        replica = _frozen_copy(source)
        self.pairs: list[tuple[str, str]] = []
        # In lists, so as to be no submodules: what runs, and the module to compare its graph with.
        self._run: list[Callable[[Tensor], Tensor]] = []
        self._unproven: list[nn.Module] = []
        traced = _traced(replica)
        if traced is None:
            self._take(replica)
        else:
            if not isinstance(source, fx.GraphModule):  # whose code is a graph already
                self._unproven.append(_frozen_copy(source))
            self.pairs = _drop_batch_norms(traced)
            if not compiled:
                _freeze_convolutions(traced)
            _let_views_copy(traced)
            self._take(traced)
        self.refresh(source)

    def _take(self, net: nn.Module) -> None:
        """Run `net` from now on."""
        self.net = net
        # torch cannot lay out tensors of five axes channels-last.
        if all(tensor.dim() < 5 for tensor in [*net.parameters(), *net.buffers()]):
            net.to(memory_format=torch.channels_last)
        run: Callable[[Tensor], Tensor] = torch.compile(net, dynamic=False) if self._compiled else net
        self._run[:] = [Recorded(run, self._note) if self._recorded else run]

    @torch.no_grad()
    def _prove(self, x: Tensor) -> None:
        """Compare the graph with the module it was traced from, on two images, and take the module if they differ.

        Code may ask whether it was given a tensor, draw numbers, or catch what tracing raises: what it does then is
        not what it does with images.
        """
        module, x = self._unproven.pop().to(x.device), x[:2]
        with torch.autocast(x.device.type, enabled=False), torch.random.fork_rng(devices=[]):
            try:
                expected, found = module(x), self.net(x.contiguous(memory_format=self._layout))
                room = 1e-3 * float(expected.abs().amax())
                same = torch.allclose(found, expected, rtol=0, atol=room, equal_nan=True)
            except Exception:  # noqa: BLE001 - either may raise anything; what is the module's own shows where it runs
                same = False
        if not same:
            self.pairs = []
            self._take(module)

    @torch.no_grad()
    def refresh(self, source: nn.Module) -> None:
        """Take over the weights and statistics that `source` has now."""
        values = _named(source)
        for module in self._unproven:
            _copy_into(module, values)
        for conv_name, norm_name in self.pairs:
            conv: Any = source.get_submodule(conv_name)
            norm: Any = source.get_submodule(norm_name)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            values |= {f"{conv_name}.weight": weight, f"{conv_name}.bias": bias}
        _copy_into(self.net, values)
        for module in self.net.modules():
            if isinstance(module, FrozenConv2d):
                module.refreshed(in_place=self._in_place)

    def forward(self, x: Tensor) -> Tensor:
        if self._unproven and len(x) and not x.is_meta:
            self._prove(x.detach())
        # Convolutions run faster on channels-last images, and nothing is reordered between two of them.
        try:
            logits = self._run[0](x.contiguous(memory_format=self._layout))
        except RuntimeError:  # TorchScript that calls `view` on a map
            if self._layout is torch.contiguous_format:
                raise
            self._layout = torch.contiguous_format
            self.net.to(memory_format=self._layout)
            return self.forward(x)
        return logits.float() if logits.dtype == torch.bfloat16 else logits


def _frozen_copy(source: nn.Module) -> nn.Module:
    copied = copy.deepcopy(source).eval()
    for parameter in copied.parameters():  # TorchScript has no requires_grad_, and its copies have a graph
        parameter.detach_()
    return copied


def _copy_into(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, tensor in _named(module).items():
        if name in values:  # constants in the code become buffers that the source does not have
            tensor.copy_(values[name])


def _named(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones under each of their names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


class _Tracer(fx.Tracer):
    """What the code computes from buffers becomes a part of the graph: these change in training."""

    proxy_buffer_attributes = True


def _traced(module: nn.Module) -> fx.GraphModule | None:
    """The graph of a module, as it answers to images alone.

    None if its control flow depends on the data, for TorchScript, which has no Python, and for a module with hooks of
    its own, which the graph of its `forward` would lack.
    """
    if isinstance(module, torch.jit.ScriptModule) or not is_plain(module, type(module)):
        return None
    try:
        # What may be left out when the network is called is left out, and `if mask is None` is then true.
        _, *others = inspect.signature(module.forward).parameters.values()
        left_out = {each.name: each.default for each in others if each.kind not in VARIADIC}
        return fx.GraphModule(module, _Tracer().trace(module, concrete_args=left_out))
    except Exception:  # noqa: BLE001 - a network may raise anything where it is given no tensor
        return None


def _let_views_copy(traced: fx.GraphModule) -> None:
    """Replace `view`, which refuses channels-last maps, by `reshape`."""
    for node in traced.graph.nodes:
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"
    traced.recompile()


@dataclass(frozen=True)
class Inner:
    """How the networks are run inside an inner maximisation. It changes rounding and speed, nothing else.

    Attributes:
        precision: `bf16` runs them under autocast: sums of products of bfloat16, kept in float32.
        compiled: by torch.compile. Pays for MobileNetV2, costs for ResNet-18 (docs/measurements.md).
        recorded: as CUDA graphs, on a card (dgad_tk/ascent/recorded.py).
        note: gets a sentence where graphs cannot be recorded.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False
    recorded: bool = False
    note: Callable[[str], None] = field(default=lambda line: None, repr=False, compare=False)

    def view(self, model: nn.Module) -> Folded:
        """`model` in eval mode as it is now, folded."""
        return folded(model, compiled=self.compiled, recorded=self.recorded, note=self.note)

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """Autocast to bfloat16 if asked for, else nothing."""
        return autocast(self.precision, device)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 if `precision` is bf16, else nothing."""
    # No cache of cast weights: up to torch 2.10 at least, a cache that was filled under no_grad, as by AdaAD's clean
    # forward, cuts the weights off from the loss.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


_views: WeakKeyDictionary[nn.Module, dict[tuple[bool, bool], Folded]] = WeakKeyDictionary()


def folded(
    source: nn.Module,
    *,
    compiled: bool = False,
    recorded: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Folded:
    """`source` in eval mode as it is now, folded. It is copied once, and the copy is refreshed at each call."""
    views, how = _views.setdefault(source, {}), (compiled, recorded)
    view = views.get(how)
    if view is None or _place(view) != _place(source):
        views[how] = view = Folded(source, compiled=compiled, recorded=recorded, note=note)
    else:
        view.refresh(source)
    return view


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    parameter = next(module.parameters(), None)
    return None if parameter is None else (parameter.device, parameter.dtype)


def _drop_batch_norms(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """Remove each BatchNorm that alone reads a convolution's output from the graph; the names of both."""
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    read = {node.target for node in traced.graph.nodes if node.op == "get_attr"}
    # The same weights in another module would need another folding.
    holders = Counter(id(each) for module in modules.values() for each in set(module.parameters(recurse=False)))
    pairs: list[tuple[str, str]] = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not is_plain(norm := modules[node.target], *BATCH_NORMS):
            continue
        before = node.args[0]
        alone = isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1
        # A module that is called twice would need two foldings; without running statistics there is nothing to fold.
        if not alone or calls[before.target] > 1 or calls[node.target] > 1 or norm.running_mean is None:
            continue
        conv: Any = modules[before.target]
        shared = any(
            holders[id(each)] > 1 or f"{before.target}.{name}" in read for name, each in conv.named_parameters()
        )
        if shared or not is_plain(conv, nn.Conv2d):
            continue
        pairs.append((before.target, node.target))
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), requires_grad=False)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return pairs


def _freeze_convolutions(traced: fx.GraphModule) -> None:
    """Put a FrozenConv2d in the place of each convolution that it covers: zero padding, given in numbers."""
    for name, module in list(traced.named_modules()):
        if is_plain(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            traced.set_submodule(name, FrozenConv2d(module))
    rectify_in_place(traced)
    traced.delete_all_unused_submodules()
    traced.recompile()
