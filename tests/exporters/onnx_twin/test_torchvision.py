"""The twin of torchvision's classifiers, by both torch exporters and through optimisers, against outside judges.

`-m slow` runs all of them; `benchmarks/twin_matrix.py` prints the figures.
"""

import pickle
from pathlib import Path

import onnx
import onnxslim
import pytest
import torch
from torchvision_nets import (
    DYNAMO,
    NETS,
    OPTIMISERS,
    TORCHSCRIPT,
    Comparison,
    compare,
    exported,
    gradients,
    images,
    runtime,
)

from exporters.onnx_twin import to_torch

LOGITS = 1e-4
DOUBLE = 1e-5
"""Gradients in double precision. What is left are constants that a file has in single precision, such as 1/6."""
SINGLE, FLIPPED = 1e-3, 2e-2
"""Gradients in single precision, the median: of nets that every run compares, and of deep ReLU nets. Rounding puts some
ReLU of those on the other side of zero, which moves an image's gradient by up to a percent or two; it happens to the
source module as often, against itself in double precision."""

SHORT = [
    ("mobilenet_v3_small", True, 18),
    ("mobilenet_v3_small", False, 11),
    ("shufflenet_v2_x0_5", True, 20),
    ("shufflenet_v2_x0_5", False, 13),
    ("vit_small", True, 23),
    ("vit_small", False, 17),
    ("swin_small", True, 23),
    ("swin_small", False, 11),
]
"""What every run of the tests exports: whose file, by the dynamo exporter or not, and the opset."""
LONG = [
    (name, dynamo, opset)
    for name, net in NETS.items()
    for dynamo in (True, False)
    for opset in (DYNAMO if dynamo else TORCHSCRIPT)
    if (dynamo or opset >= net.oldest) and (name, dynamo, opset) not in SHORT
]


def check(found: Comparison) -> None:
    print(found)
    assert found.logits <= LOGITS
    assert found.spread > 100 * LOGITS, "the images have the same logits: nothing was compared"
    assert found.double <= DOUBLE
    assert found.single <= FLIPPED


@pytest.mark.parametrize(("name", "dynamo", "opset"), SHORT)
def test_an_export(name: str, dynamo: bool, opset: int) -> None:
    """Logits as ONNX Runtime's at batches 1 to 3, gradients as the source's."""
    found = compare(name, exported(name, opset, dynamo=dynamo))
    check(found)
    assert found.single <= SINGLE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamo", "opset"), LONG)
def test_every_export(name: str, dynamo: bool, opset: int) -> None:
    """The same of the families that take longer, and at the opsets between."""
    check(compare(name, exported(name, opset, dynamo=dynamo)))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_small"])
def test_an_optimised_file(name: str, optimiser: str, tmp_path: Path) -> None:
    """Through onnxslim, or as ONNX Runtime saves it: other nodes, some of them its own, and the same function."""
    model = exported(name, 17, dynamo=False)
    optimised = OPTIMISERS[optimiser](model, tmp_path)
    assert optimised.graph != model.graph
    assert (optimiser == "extended") == any(node.domain == "com.microsoft" for node in optimised.graph.node)
    check(compare(name, optimised))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_every_file_through_onnxslim(name: str, dynamo: bool) -> None:
    check(compare(name, onnxslim.slim(exported(name, 20, dynamo=dynamo))))


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["basic", "extended"])
@pytest.mark.parametrize("name", ["resnet18", "swin_small"])
def test_files_saved_by_onnx_runtime(name: str, optimiser: str, tmp_path: Path) -> None:
    check(compare(name, OPTIMISERS[optimiser](exported(name, 20, dynamo=True), tmp_path)))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "swin_small"])
def test_a_fixed_batch(name: str) -> None:
    """Exported for two images, and run on two."""
    check(compare(name, exported(name, 17, dynamo=False, dynamic=False), batches=(2,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "swin_small"])
def test_a_fixed_batch_by_dynamo(name: str) -> None:
    check(compare(name, exported(name, 20, dynamo=True, dynamic=False), batches=(2,)))


def test_a_module_like_any_other() -> None:
    """Printed, pickled, moved, cast, and run at any batch."""
    model = exported("swin_small", 17, dynamo=False)
    twin = to_torch(model)
    assert isinstance(twin, torch.fx.GraphModule)
    assert "layer_norm" in twin.code
    for n, place in ((7, "meta"), (1, torch.float64)):
        moved = pickle.loads(pickle.dumps(twin)).to(place)
        assert moved(images("swin_small", n).to(place)).shape == (n, 10)  # nothing stays behind
    for n in (1, 2, 7):
        x = images("swin_small", n)
        torch.testing.assert_close(twin(x), runtime(model, x), rtol=1e-4, atol=1e-4)


def test_compiled_with_its_backward() -> None:
    """A vision transformer's, in one graph."""
    twin, x = to_torch(exported("vit_small", 17, dynamo=False)), images("vit_small", 2)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled, x), gradients(twin, x))


def test_only_the_batch_is_read_while_running() -> None:
    """All that Swin computes from its image's size (windows, shifts, masks) is known at conversion."""
    graph = to_torch(exported("swin_small", 17, dynamo=False)).graph
    reads = [node for node in graph.nodes if node.target == "size"]
    assert {node.args[1:] for node in reads} == {(0,)}
    made = {"_tensor", "_shape_tensor", "_numbers", "_full", "_scatter_nd"}
    assert made.isdisjoint(str(getattr(node.target, "__name__", node.target)) for node in graph.nodes)


def test_sizes_that_follow_the_batch() -> None:
    """At most four images: a size that is the same in large batches and is not the same in small ones."""
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18]>
        graph (float[n, 4, 6] x) => (float[few, rest] y) {
            zero = Constant <value_ints = [0]> ()
            four = Constant <value_ints = [4]> ()
            minus = Constant <value_ints = [-1]> ()
            some = Slice (x, zero, four, zero)
            shape = Shape (some)
            count = Gather (shape, zero)
            target = Concat <axis = 0> (count, minus)
            y = Reshape (some, target)
        }
    """)
    twin = to_torch(model)
    for n in (1, 3, 4, 900):
        torch.testing.assert_close(twin(torch.ones(n, 4, 6)), runtime(model, torch.ones(n, 4, 6)))


def test_a_declared_batch_binds_nobody() -> None:
    """Where the nodes ask for the batch, a file for two images is a twin for any."""
    model = exported("shufflenet_v2_x0_5", 17, dynamo=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    twin = to_torch(model)
    assert [twin(images("shufflenet_v2_x0_5", n)).shape for n in (1, 2, 7)] == [(1, 10), (2, 10), (7, 10)]


def test_examples_take_no_memory() -> None:
    """A large batch is only imagined at conversion, and does not count as folded constants."""
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18]>
        graph (float[n, 64, 224, 224] x) => (float[n, 64, 112, 112] y) {
            y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)
        }
    """)
    assert to_torch(model)(torch.ones(1, 64, 224, 224)).shape == (1, 64, 112, 112)
