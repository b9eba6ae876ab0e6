"""torchvision's classifiers with weights that hide nothing, their exports, and how far a twin is from its judges."""

import copy
import io
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import onnxruntime
import onnxslim
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from exporters.onnx_twin import to_torch

CLASSES = 10


@dataclass(frozen=True)
class Net:
    """How a net is built and exported.

    Attributes:
        size: pixels an edge.
        pairs: half as many images as gradients are compared on.
        options: keyword arguments of `build`.
        oldest: the opset from which on the TorchScript exporter can write it (attention came with 14).
    """

    build: Callable[..., nn.Module]
    size: int
    pairs: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)
    oldest: int = 11


SMALL_VIT = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
SMALL_SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 4],  # a quarter of the first stage's 16x16 positions, so that every other block shifts and masks
}
NETS = {
    "resnet18": Net(models.resnet18, 224, 2),
    "resnet50": Net(models.resnet50, 96),
    "mobilenet_v2": Net(models.mobilenet_v2, 96),
    "mobilenet_v3_small": Net(models.mobilenet_v3_small, 64),
    "shufflenet_v2_x0_5": Net(models.shufflenet_v2_x0_5, 64),
    "efficientnet_b0": Net(models.efficientnet_b0, 96),
    "vgg11_bn": Net(models.vgg11_bn, 224, 1),  # at other sizes its pooling is one that ONNX has no operator for
    "densenet121": Net(models.densenet121, 64),
    "googlenet": Net(models.googlenet, 64, options={"aux_logits": False, "init_weights": False}),
    "regnet_y_400mf": Net(models.regnet_y_400mf, 64),
    "convnext_tiny": Net(models.convnext_tiny, 64),
    "vit_small": Net(models.VisionTransformer, 64, options=SMALL_VIT, oldest=14),
    "vit_b_16": Net(models.vit_b_16, 224, 1, oldest=14),
    "swin_small": Net(models.SwinTransformer, 64, options=SMALL_SWIN),
    "swin_t": Net(models.swin_t, 224, 1),
}


def source(name: str, *, exact: bool = True) -> nn.Module:
    """The net in eval mode, seeded, its logits different from image to image.

    What training starts as constants (BatchNorm's and LayerNorm's parameters, biases, layer scales, class tokens) is
    drawn, since constants hide mistakes.

    Args:
        exact: weights and BatchNorms have so few digits that folding one into the other does not round. Otherwise an
            exporter that folds in single precision writes a slightly different net, in which some image has some ReLU
            on the other side of zero, and no precision that the twin runs in brings the source's gradient back.
    """
    return _source(name, exact)  # one key of the cache, however it is called


@lru_cache(maxsize=1)
def _source(name: str, exact: bool) -> nn.Module:
    net, generator = NETS[name], torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = net.build(num_classes=CLASSES, **net.options)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                gain = 2 if isinstance(module, nn.Conv2d) else 1
                fan_in = module.weight[0].numel()
                module.weight.data.normal_(0, (gain / fan_in) ** 0.5, generator=generator)
        for parameter in model.parameters():
            first = parameter.flatten()[0]
            if bool((parameter == first).all()):
                low, high = (-0.5, 0.5) if first == 0 else (0.5, 1.5)
                parameter.data.uniform_(low, high, generator=generator)
        if exact:
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16().float()
        model.eval().requires_grad_(False)
        hooks = [
            module.register_forward_pre_hook(partial(_settle, generator=generator, exact=exact))
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        model(images(name, 8))
        for hook in hooks:
            hook.remove()
    return model


def _settle(norm: nn.BatchNorm2d, inputs: tuple[Tensor], generator: torch.Generator, exact: bool) -> None:
    """Give `norm` statistics that are near those of its input, so that signals neither die nor explode further on."""
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    scale = variance.clamp(min=2**-10).sqrt() * (0.8 + 0.4 * torch.rand(mean.shape, generator=generator))
    shift = mean / scale + 0.3 * torch.randn(mean.shape, generator=generator)
    norm.eps = 2**-16
    if exact:  # powers of two, and multiples of a power of two
        scale, shift = torch.exp2(scale.log2().round()), (shift * 32).round() / 32
    norm.running_mean, norm.running_var = shift * scale, scale**2 - norm.eps


def images(name: str, n: int) -> Tensor:
    """Blots of colour under some noise: of noise alone all images have the same features. `(n, 3, size, size)`."""
    generator, size = torch.Generator().manual_seed(n), NETS[name].size
    blots = F.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size=size, mode="bilinear")
    return (blots + 0.2 * torch.randn(n, 3, size, size, generator=generator)).clamp(0, 1)


@lru_cache(maxsize=1)
def _program(name: str, dynamic: bool, exact: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    return torch.export.export(source(name, exact=exact), (images(name, 2),), dynamic_shapes=shapes)


def exported(name: str, opset: int, *, dynamo: bool, dynamic: bool = True, exact: bool = True) -> onnx.ModelProto:
    """The net as ONNX. With `dynamic` its batch is open, else it is 2; `exact` as in `source`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn of their own future, and copyreg of torch's types
        if dynamo:
            program = torch.onnx.export(_program(name, dynamic, exact), dynamo=True, opset_version=opset, verbose=False)
            assert program is not None
            model: onnx.ModelProto = program.model_proto
        else:
            model = _by_torchscript(name, opset, dynamic, exact)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {opset}
    return model


def _by_torchscript(name: str, opset: int, dynamic: bool, exact: bool) -> onnx.ModelProto:
    file = io.BytesIO()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for all of attention, which ONNX does not have
    try:
        torch.onnx.export(
            source(name, exact=exact),
            (images(name, 2),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}} if dynamic else None,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return onnx.load_from_string(file.getvalue())


def runtime(model: onnx.ModelProto, x: Tensor) -> Tensor:
    """ONNX Runtime's logits."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def gradients(net: nn.Module, x: Tensor) -> Tensor:
    """Of the cross-entropy, two images at a time, one row an image."""
    rows = []
    for pair in x.split(2):
        leaf = pair.clone().requires_grad_()
        loss = F.cross_entropy(net(leaf), torch.arange(len(leaf)), reduction="sum")
        rows.append(torch.autograd.grad(loss, leaf)[0].flatten(1))
    return torch.cat(rows)


@lru_cache(maxsize=1)
def _references(name: str, exact: bool) -> tuple[Tensor, Tensor]:
    """The source's gradients, in single and in double precision."""
    net, x = source(name, exact=exact), images(name, 2 * NETS[name].pairs)
    return gradients(net, x), gradients(copy.deepcopy(net).double(), x.double())


@dataclass(frozen=True)
class Comparison:
    """A twin against ONNX Runtime (logits) and against the source module (gradients).

    A gradient's difference is relative, of an image, L2.

    Attributes:
        logits: largest difference over `max(1, largest logit)`, in single precision.
        spread: the same of one image's logits and another's, to hold `logits` against.
        double: of the gradients in double precision, the largest.
        single: in single precision, the median.
        own: in single precision, the median of the source's against itself in double.
        worst: in single precision, the largest: what a ReLU on the other side of zero does.
        own_worst: the same of the source against itself in double.
        seconds: the processor's, for the conversion.
        nodes: of the twin.
    """

    logits: float
    spread: float
    double: float
    single: float
    own: float
    worst: float
    own_worst: float
    seconds: float
    nodes: int


def compare(
    name: str, model: onnx.ModelProto, *, batches: tuple[int, ...] = (1, 2, 3), exact: bool = True
) -> Comparison:
    """Convert `model`, an export of the net `name`; compare logits at `batches`, and gradients of pairs of images."""
    start = time.process_time()
    twin = to_torch(model)
    seconds = time.process_time() - start
    nodes = len(twin.graph.nodes)
    logits, spread = _against_runtime(twin, model, name, batches)
    references, x = _references(name, exact), images(name, 2 * NETS[name].pairs)
    single = _relative(gradients(twin, x), references[0])
    double = _relative(gradients(twin.double(), x.double()), references[1])
    own = _relative(references[0].double(), references[1])
    return Comparison(
        logits=logits,
        spread=spread,
        double=max(double),
        single=median(single),
        own=median(own),
        worst=max(single),
        own_worst=max(own),
        seconds=seconds,
        nodes=nodes,
    )


def _against_runtime(
    twin: nn.Module, model: onnx.ModelProto, name: str, batches: tuple[int, ...]
) -> tuple[float, float]:
    """`Comparison.logits` and `.spread`."""
    logits = spread = 0.0
    for n in batches:
        x = images(name, n)
        expected, actual = runtime(model, x), twin(x)
        assert actual.shape == expected.shape == (n, CLASSES)
        scale = max(1.0, expected.abs().max().item())
        logits = max(logits, (actual - expected).abs().max().item() / scale)
        spread = max(spread, (expected - expected[0]).abs().max().item() / scale)
    return logits, spread


def _relative(actual: Tensor, expected: Tensor) -> list[float]:
    assert actual.dtype == expected.dtype
    return ((actual - expected).norm(dim=1) / expected.norm(dim=1)).tolist()  # type: ignore[no-any-return]


DYNAMO = (18, 20, 23)


TORCHSCRIPT = (11, 13, 17, 20)


def by_runtime(level: str) -> Callable[[onnx.ModelProto, Path], onnx.ModelProto]:
    """What ONNX Runtime leaves of a model at an optimisation level."""

    def optimise(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(folder / "optimised.onnx")

    return optimise


OPTIMISERS = {
    "onnxslim": lambda model, folder: onnxslim.slim(model),
    "basic": by_runtime("BASIC"),
    "extended": by_runtime("EXTENDED"),
}
