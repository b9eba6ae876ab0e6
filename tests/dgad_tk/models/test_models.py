"""Networks against the parameter counts of the papers, and the contract of all of them."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import SMALLEST
from torch import fx, nn

from dgad_tk.common import UserError
from dgad_tk.models import MODELS, build_model, check_input, count_parameters, find_model

PARAMETERS = {
    # model: 10 classes, three channels; as published or, for CIFAR variants without a paper, in the public code
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "preact-resnet18": 11_171_146,
    "mobilenetv2": 2_296_922,
    "wrn-34-10": 46_160_474,
    "wrn-34-20": 184_531_674,
    "vgg16": 14_728_266,
}
HUGE = 100e6
"""From this many parameters on a network is only counted."""


def on_meta(name: str, in_channels: int = 3, classes: int = 10) -> nn.Module:
    """A network without memory, to count."""
    with torch.device("meta"):
        return build_model(name, in_channels=in_channels, classes=classes)


SMALL_ENOUGH = [name for name in MODELS if count_parameters(on_meta(name)) < HUGE]


def conv_bn(before: int, after: int, kernel: int) -> int:
    return before * after * kernel**2 + 2 * after


def thin_resnet(blocks: int, classes: int) -> int:
    """6 * blocks + 2 layers of 16, 32, 64 channels, two of the stages with a projection."""
    stages = sum(conv_bn(width, width, 3) * 2 * blocks for width in (16, 32, 64))
    first_blocks = sum(
        conv_bn(width, 2 * width, 3) - conv_bn(2 * width, 2 * width, 3) + conv_bn(width, 2 * width, 1)
        for width in (16, 32)
    )
    return conv_bn(3, 16, 3) + stages + first_blocks + 64 * classes + classes


def wide_resnet(depth: int, width: int, classes: int) -> int:
    """Every BatchNorm stands before its convolution, and the last one before the linear layer."""
    total, before = 3 * 16 * 9, 16
    for channels in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            shortcut = before * channels if before != channels else 0
            total += 2 * before + before * channels * 9 + 2 * channels + channels * channels * 9 + shortcut
            before = channels
    return total + 2 * before + before * classes + classes


FORMULAS = {
    "resnet8": lambda classes: thin_resnet(1, classes),
    "resnet20": lambda classes: thin_resnet(3, classes),
    "resnet56": lambda classes: thin_resnet(9, classes),
    "wrn-16-4": lambda classes: wide_resnet(16, 4, classes),
    "wrn-28-10": lambda classes: wide_resnet(28, 10, classes),
    "wrn-34-10": lambda classes: wide_resnet(34, 10, classes),
    "wrn-34-20": lambda classes: wide_resnet(34, 20, classes),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name: str) -> None:
    assert name in PARAMETERS or name in FORMULAS
    for classes in (10, 100):
        found = count_parameters(on_meta(name, classes=classes))
        if name in FORMULAS:
            assert found == FORMULAS[name](classes)
        if name in PARAMETERS:
            features = {"mobilenetv2": 1280, "wrn-34-10": 640, "wrn-34-20": 1280}.get(name, 512)
            assert found == PARAMETERS[name] + (classes - 10) * (features + 1)


@pytest.mark.parametrize("name", SMALL_ENOUGH)
def test_any_channels_and_sizes(name: str) -> None:
    for shape in [(1, 8, 8), (4, 28, 20)]:
        model = build_model(name, in_channels=shape[0], classes=7).eval()
        assert model(torch.rand(2, *shape)).shape == (2, 7)
        check_input(model, name, shape, 7)


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("size", [32, 64])
def test_the_sizes_of_the_papers(name: str, size: int) -> None:
    model = build_model(name, in_channels=3, classes=200).eval()
    assert model(torch.rand(2, 3, size, size)).shape == (2, 200)


@pytest.mark.parametrize("name", MODELS)
def test_traceable(name: str) -> None:
    """Folding and the exporters trace; and the trace has no place for what depends on the data."""
    graph = fx.symbolic_trace(on_meta(name).eval()).graph
    assert sum(node.op == "placeholder" for node in graph.nodes) == 1


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("resnet18", {"conv1.weight", "layer1.0.bn2.bias", "layer4.0.shortcut.0.weight", "linear.bias"}),
        ("preact-resnet18", {"conv1.weight", "layer1.0.bn1.bias", "layer4.0.shortcut.0.weight", "linear.bias"}),
        ("wrn-34-10", {"conv1.weight", "block1.layer.4.bn1.running_var", "block3.layer.0.convShortcut.weight"}),
        ("wrn-34-10", {"block2.layer.0.conv2.weight", "bn1.weight", "fc.weight", "fc.bias"}),
        ("vgg16", {"features.0.bias", "features.1.weight", "features.41.running_mean", "classifier.weight"}),
    ],
)
def test_public_parameter_names(name: str, known: set[str]) -> None:
    names = set(on_meta(name).state_dict())
    assert {f"net.{each}" for each in known} <= names


def test_networks_without_a_final_or_second_norm() -> None:
    assert "net.bn.weight" not in on_meta("preact-resnet18").state_dict()
    wide = on_meta("wrn-34-10").state_dict()
    assert not [name for name in wide if "sub_block1" in name or "block1.layer.5" in name]
    assert not [name for name in wide if "layer.1.convShortcut" in name]


def test_pre_activation_shortcuts_read_the_activated_input() -> None:
    """Where the shape changes the shortcut reads relu(bn1(x)), otherwise x itself: both blocks by hand."""
    from dgad_tk.models.preact_resnet import PreActBlock
    from dgad_tk.models.wide_resnet import WideBlock

    x = torch.randn(2, 4, 6, 6)
    for block in (WideBlock(4, 4, 1), PreActBlock(4, 4, 1), WideBlock(4, 6, 2), PreActBlock(4, 6, 2)):
        block.eval()
        with torch.no_grad():
            block.bn1.bias.fill_(0.3)
            active = (x / (1 + 1e-5) ** 0.5 + 0.3).clamp(min=0)
            hidden = nn.functional.conv2d(active, block.conv1.weight, stride=block.conv1.stride, padding=1)
            hidden = nn.functional.conv2d((hidden / (1 + 1e-5) ** 0.5).clamp(min=0), block.conv2.weight, padding=1)
            shortcut = x
            if block.conv1.stride == (2, 2):
                name = "convShortcut" if isinstance(block, WideBlock) else "shortcut.0"
                shortcut = nn.functional.conv2d(active, block.get_parameter(f"{name}.weight"), stride=2)
            torch.testing.assert_close(block(x), hidden + shortcut, rtol=1e-5, atol=1e-5)


def test_vgg_is_the_standard_one_at_32x32() -> None:
    """Poolings that round down, as the public code has them, compute the same there."""
    model = build_model("vgg16", in_channels=3, classes=10).eval()
    x = torch.rand(2, 3, 32, 32)
    expected = model(x)
    poolings = [module for module in model.modules() if isinstance(module, nn.MaxPool2d)]
    assert len(poolings) == 5
    for pooling in poolings:
        pooling.ceil_mode = False
    assert torch.equal(model(x), expected)


def test_a_wide_resnet_has_a_depth_of_6_n_plus_4() -> None:
    from dgad_tk.models.wide_resnet import WideResNet

    with pytest.raises(ValueError, match="depth must be 6 n . 4, got 30"):
        WideResNet(3, 10, depth=30, width=1)


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2), (40, 2), (28, 12), (94, 1)])
def test_a_wide_resnet_of_any_depth_and_width_is_a_model(depth: int, width: int) -> None:
    name = f"wrn-{depth}-{width}"
    assert name not in MODELS
    assert count_parameters(on_meta(name)) == wide_resnet(depth, width, 10)


def test_a_row_and_the_family_build_the_same_network() -> None:
    from dgad_tk.models import FAMILIES

    for name in [name for name in MODELS if name.startswith("wrn-")]:
        builder = FAMILIES["wrn-D-K"](name)
        assert builder is not None
        with torch.device("meta"):
            assert count_parameters(builder(3, 10)) == count_parameters(MODELS[name](3, 10))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn-15-2", "depth of a wide residual network is 6 n . 4, at least 10, got 15 .wrn-10-2 or wrn-16-2"),
        ("wrn-4-2", "at least 10, got 4 .wrn-10-2 or wrn-16-2"),
        ("wrn-0-0", "at least 10, got 0 .wrn-10-1 or wrn-16-1"),
        ("wrn-10-0", "width of a wide residual network is at least 1, got 0 .wrn-10-1"),
        ("wrn-28-010", "unknown model 'wrn-28-010' .did you mean 'wrn-28-10'"),
        ("wrn-10-1000", "about [0-9,]+ million parameters in 10 layers .at most 1,000 million"),
        ("wrn-6004-1", "million parameters in 6004 layers .at most 1,000 million and 1,000 layers"),
        ("wrn-10-" + "9" * 5000, "is too large to be built .choose a network such as wrn-28-10"),
        ("wrn-28", "unknown model 'wrn-28' .did you mean 'wrn-28-10'"),
        ("wrn-\u0661\u0666-2", "unknown model"),
    ],
)
def test_wide_resnets_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_model(name)


def test_normalisation_is_inside() -> None:
    torch.manual_seed(0)
    plain = build_model("resnet8", in_channels=2, classes=3).eval()
    torch.manual_seed(0)
    inside = build_model("resnet8", in_channels=2, classes=3, mean=(0.1, 0.2), std=(0.5, 0.25)).eval()
    x = torch.rand(4, 2, 8, 8)
    outside = (x - torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)) / torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    torch.testing.assert_close(inside(x), plain(outside))
    assert inside.state_dict()["normalize.mean"].flatten().tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "unknown model 'resnet81'.*did you mean 'resnet8'"),
        ("torchvison:resnet18", "unknown library 'torchvison' .*did you mean 'torchvision'"),
        ("torchvision:resnet81", "unknown torchvision classification model 'resnet81' .did you mean 'torchvision:resn"),
        ("torchvision:", "unknown torchvision classification model '' .*documentation of torchvision lists"),
        ("torchvision:fcn_resnet50", "unknown torchvision classification model 'fcn_resnet50'"),
        ("torchvision:quantized_resnet18", "unknown torchvision classification model"),
        ("my nets/mine.py", "unknown model .*my nets/mine.py:FUNCTION"),
    ],
)
def test_unknown_models_name_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_model(name)
    with pytest.raises(UserError, match=message):
        build_model(name, in_channels=3, classes=10)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "squeezenet1_1", "googlenet"])
def test_torchvision(name: str, in_channels: int) -> None:
    """In train mode too: googlenet's auxiliary heads would make it a tuple there."""
    model = build_model(f"torchvision:{name}", in_channels=in_channels, classes=7)
    assert model(torch.rand(2, in_channels, 64, 64)).shape == (2, 7)
    check_input(model, name, (in_channels, 64, 64), 7)
    assert model.training


def test_torchvision_is_the_one_of_torchvision() -> None:
    from torchvision import models

    torch.manual_seed(0)
    ours = find_model("torchvision:mobilenet_v3_small")(3, 10)
    torch.manual_seed(0)
    theirs = models.mobilenet_v3_small(weights=None, num_classes=10)
    x = torch.rand(2, 3, 40, 40)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_a_stem_that_cannot_be_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setattr(models, "get_model", lambda *_, **__: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))
    with pytest.raises(UserError, match="torchvision:resnet18 takes images of 3 channels, not 1"):
        build_model("torchvision:resnet18", in_channels=1, classes=10)


def test_images_that_a_network_does_not_take() -> None:
    model = build_model("torchvision:squeezenet1_0", in_channels=3, classes=10)
    with pytest.raises(UserError, match="squeezenet takes no 3x8x8 images: .*choose another --image-size"):
        check_input(model, "squeezenet", (3, 8, 8), 10)
    with pytest.raises(UserError, match="squeezenet does not turn 3x64x64 images into 5 logits"):
        check_input(model, "squeezenet", (3, 64, 64), 5)
    assert model.training


def test_without_timm_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'needs timm, which is not installed .pip install "dgad-tk\[timm\]"'):
        find_model("timm:resnet18")


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we hand to it and what comes of its answers, on a stand-in."""
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append({"name": name, **options})
        if options["in_chans"] == 2:
            raise NotImplementedError("two\nchannels")
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(options["num_classes"]))

    stand_in = SimpleNamespace(list_models=lambda: ["resnet18", "vit_tiny"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    model = build_model("timm:resnet18", in_channels=1, classes=7)
    assert asked == [{"name": "resnet18", "pretrained": False, "in_chans": 1, "num_classes": 7}]
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    with pytest.raises(UserError, match="unknown timm model 'resnett18' .did you mean 'timm:resnet18'"):
        find_model("timm:resnett18")
    with pytest.raises(UserError, match="unknown timm model 'hf-hub:someone/something' .the documentation of timm"):
        find_model("timm:hf-hub:someone/something")  # would download
    with pytest.raises(UserError, match="timm cannot build resnet18 for 2 channels and 7 classes: two channels"):
        build_model("timm:resnet18", in_channels=2, classes=7)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(4, 4), (37, 50), (224, 224), (160, 256)])
def test_every_row_takes_every_size(name: str, size: tuple[int, int]) -> None:
    """As shapes alone, without memory, in train mode."""
    with torch.device("meta"):
        assert on_meta(name).train()(torch.rand(2, 3, *size)).shape == (2, 10)
