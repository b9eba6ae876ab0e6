"""Networks against the parameter counts of the papers, and the contract of all of them."""

import pytest
import torch

from dgad_tk.common import UserError
from dgad_tk.models import MODELS, build_model, count_parameters

PARAMETERS = {
    # model: (10 classes, 100 classes), three channels; the first two as published for the CIFAR variants
    "resnet18": (11_173_962, 11_220_132),
    "mobilenetv2": (2_296_922, 2_412_212),
    "resnet20": (272_474, 278_324),
    "resnet8": (78_042, 83_892),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name: str) -> None:
    counts = [count_parameters(build_model(name, in_channels=3, classes=classes)) for classes in (10, 100)]
    assert tuple(counts) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 28, 20)])
def test_any_channels_and_sizes(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, in_channels=shape[0], classes=7).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_public_parameter_names() -> None:
    names = set(build_model("resnet18", in_channels=3, classes=10).state_dict())
    assert {"net.conv1.weight", "net.layer1.0.bn2.bias", "net.layer4.0.shortcut.0.weight", "net.linear.bias"} <= names


def test_normalisation_is_inside() -> None:
    torch.manual_seed(0)
    plain = build_model("resnet8", in_channels=2, classes=3).eval()
    torch.manual_seed(0)
    inside = build_model("resnet8", in_channels=2, classes=3, mean=(0.1, 0.2), std=(0.5, 0.25)).eval()
    x = torch.rand(4, 2, 8, 8)
    outside = (x - torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)) / torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    torch.testing.assert_close(inside(x), plain(outside))
    assert inside.state_dict()["normalize.mean"].flatten().tolist() == pytest.approx([0.1, 0.2])


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown model 'resnet81'.*did you mean 'resnet8'"):
        build_model("resnet81", in_channels=3, classes=10)
