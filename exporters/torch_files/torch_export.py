"""`.pt2` files: a program of torch.export and the metadata record."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from dgad_tk.artifacts.module_output import KEEPING, Last
from dgad_tk.artifacts.predictor import OpenShapeError, Predictor, predictor_of_module
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError, reason_of, sha256_file, written_aside
from exporters.torch_files.archive import EXTRA_FILE, read_archived_record


class ExportedModule(nn.Module):
    """The network of a .pt2 file, which has eval mode alone. It can be copied and pickled.

    Args:
        program: with one input, `(N, C, H, W)`.
        batch: how many images it is run on at a time; None for any number.
    """

    def __init__(self, program: torch.export.ExportedProgram, batch: int | None = None) -> None:
        super().__init__()
        self.batch = batch
        # The program's own guards do not pickle. `load_torch_export` looks at the input's shape instead.
        graph = program.module(check_guards=False)
        # What `module()` returns refuses `eval()` as well as `train()`; a plain GraphModule of the same graph does not.
        self.net = fx.GraphModule(graph, graph.graph)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ValueError("an exported program stays in eval mode")
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        if self.batch is None:
            return self.net(x)
        lacking = -len(x) % self.batch
        whole = torch.cat([x, x[-1:].expand(lacking, *x.shape[1:])]) if lacking else x
        return _joined([self.net(part) for part in torch.split(whole, self.batch)], len(x))

    @torch.no_grad()
    def free(self, shape: tuple[int, int, int]) -> bool:
        """Take any number of images at once, if that gives the same answers. Whether it does.

        Most programs that were exported for one batch size have it in nothing but their guards.
        """
        if self.batch is None:
            return True
        own, images = self.batch, torch.rand(self.batch + 3, *shape, generator=torch.Generator().manual_seed(0))
        expected, self.batch = self(images), None
        try:
            same = all(map(_same, _tensors(self(images)), _tensors(expected)))
        except (RuntimeError, ValueError, IndexError, TypeError):  # its sizes fit its own batch alone
            same = False
        self.batch = None if same else own
        return same


def _joined(parts: list[Any], count: int) -> Any:
    """The answers to batches as those to the first `count` images: a tensor, or a tuple or a mapping of such."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts], count) for key in first}
    if isinstance(first, tuple | list):
        return tuple(_joined(list(each), count) for each in zip(*parts, strict=True))
    return torch.cat(parts)[:count] if isinstance(first, Tensor) and first.dim() else first


def _tensors(answer: Any) -> list[Any]:
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    return [each for part in answer for each in _tensors(part)] if isinstance(answer, tuple | list) else [answer]


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def save_torch_export(model: nn.Module, artifact: Artifact, path: Path) -> None:
    """Write `model` (eval mode) as a program with a dynamic batch and its record inside."""
    program = torch.export.export(
        model.eval(),
        (torch.zeros(2, *artifact.input_shape),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that wrote it
    content = BytesIO()
    torch.export.save(program, content, extra_files={EXTRA_FILE: artifact.to_json()})
    with written_aside(path) as aside:
        aside.write_bytes(content.getbuffer())


def load_torch_export(
    path: Path, input_shape: tuple[int, int, int] | None = None, interface: Interface = AS_IS
) -> Predictor:
    """Open a .pt2 file, which can run its author's code.

    Args:
        input_shape: (C, H, W), for a program that leaves its input's shape open.
        interface: what is done to images before a file from elsewhere takes them.

    Raises:
        UserError: damaged, or not an image classifier.
    """
    log = logging.getLogger(torch.export.__name__)
    level = log.level
    log.setLevel(logging.ERROR)  # torch logs the traceback of a damaged file, and raises all the same
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # noqa: BLE001 - torch raises whatever the damaged content leads it to
        raise UserError(
            f"'{path}' cannot be read as an exported program: {reason_of(error)}",
            hint="it may be of another version of PyTorch; export it again",
        ) from None
    finally:
        log.setLevel(level)
    artifact = read_archived_record(path)
    batch, shape = _input(program, artifact.input_shape if artifact else input_shape, path)
    module = ExportedModule(program, batch)
    free = module.free(shape)
    predictor = predictor_of_module(
        module,
        shape,
        format="torch-export",
        path=path,
        sha256=sha256_file(path),
        artifact=artifact,
        interface=interface,
        last=_last,
    )
    if batch is None:
        return predictor
    said = f"the program was exported for {batch} {'image' if batch == 1 else 'images'} at a time"
    more = "takes any number of them with the same answers" if free else "is given as many, which is slow"
    return replace(predictor, batch=None if free else batch, notes=(*predictor.notes, f"{said}, and {more}"))


def _last(module: nn.Module) -> Last:
    """The last operator of an exported program that computes."""
    assert isinstance(module, ExportedModule)
    (output,) = module.net.graph.find_nodes(op="output")
    (node,) = output.all_input_nodes if len(output.all_input_nodes) == 1 else (None,)
    while node is not None and _operator(node) in KEEPING and node.all_input_nodes:
        node = node.all_input_nodes[0]
    if node is None or _operator(node) != "sigmoid":
        return Last("" if node is None else _operator(node))
    given = node.all_input_nodes[0].name

    def before() -> nn.Module:
        copy = deepcopy(module)
        (output,) = copy.net.graph.find_nodes(op="output")
        number = next(each for each in copy.net.graph.nodes if each.name == given)
        # A program gives its answers in the form in which it was written.
        output.args = (fx.node.map_arg(output.args[0], lambda _: number),)
        copy.net.graph.eliminate_dead_code()
        copy.net.recompile()
        return copy

    return Last("sigmoid", before)


def _operator(node: fx.Node) -> str:
    """The name of an operator of ATen, such as "sigmoid" for `aten.sigmoid.default`; else empty."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target.overloadpacket.__name__).rstrip("_")


def _input(
    program: torch.export.ExportedProgram, known: tuple[int, int, int] | None, path: Path
) -> tuple[int | None, tuple[int, int, int]]:
    """The batch size that a program takes, None for any, and (C, H, W)."""
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
        found = ", ".join(str(tuple(each.shape) if isinstance(each, Tensor) else each) for each in inputs) or "no input"
        raise UserError(
            f"'{path}' is not an image classifier: it takes {found}",
            hint="expected one float32 input (N, C, H, W) and logits (N, K)",
        )
    first, *declared = inputs[0].shape
    batch = first if isinstance(first, int) else None
    channels, height, width = (size if isinstance(size, int) else None for size in declared)
    if channels is not None and height is not None and width is not None:
        return batch, (channels, height, width)
    if known is None:
        raise OpenShapeError(
            f"'{path}' leaves its input's shape open: {tuple(inputs[0].shape)}",
            hint="name the images with --dataset",
            declared=(channels, height, width),
        )
    return batch, known
