"""Networks of other libraries: `torchvision:NAME` and, where it is installed, `timm:NAME`. Always without weights.

Most are made for ImageNet: their stems shrink a 32x32 image to 8x8 or less before the first stage. Some take no image
that small, or only one size, and `check_input` says so. They are left as they are.
"""

import copy
import difflib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from dgad_tk.common import UserError, reason_of

Builder = Callable[[int, int], nn.Module]
"""(in_channels, classes) to a network `(N, in_channels, H, W) -> (N, classes)`."""


def _nearest(name: str, known: list[str], library: str) -> str:
    """A hint for a misspelt name; the hundreds of names that are not near are left out."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{library}:{close[0]}'?" if close else f"the documentation of {library} lists them"


def torchvision_model(name: str) -> Builder:
    """The builder of a classification model of torchvision.

    Raises:
        UserError: torchvision has none of that name. The builder raises one for channels that the model cannot take.
    """
    from torchvision import models

    known = models.list_models(module=models)  # without detection, segmentation and video
    if name not in known:
        raise UserError(f"unknown torchvision classification model '{name}'", hint=_nearest(name, known, "torchvision"))
    return partial(_build_torchvision, name)


def _build_torchvision(name: str, in_channels: int, classes: int) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # With auxiliary heads they return tuples; without `init_weights` they warn.
        options = {"aux_logits": False, "init_weights": True}
    net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if in_channels != 3:
        _replace_stem(net, name, in_channels)
    return net


def _replace_stem(net: nn.Module, name: str, in_channels: int) -> None:
    """Replace the convolution that reads the image by one with `in_channels` channels."""
    where, stem = next((item for item in net.named_modules() if isinstance(item[1], nn.Conv2d)), ("", None))
    if type(stem) is not nn.Conv2d or stem.in_channels != 3 or stem.groups != 1:
        raise UserError(
            f"torchvision:{name} takes images of 3 channels, not {in_channels}, and cannot be changed",
            hint="choose another model: `dgad list models`",
        )
    other = copy.deepcopy(stem)
    other.in_channels = in_channels
    other.weight = nn.Parameter(stem.weight.new_empty(stem.out_channels, in_channels, *stem.kernel_size))
    other.reset_parameters()
    net.set_submodule(where, other)


def timm_model(name: str) -> Builder:
    """The builder of a model of timm.

    Raises:
        UserError: timm is not installed, or has none of that name. The builder raises one for what timm cannot build.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError(
            f"model 'timm:{name}' needs timm, which is not installed", hint='pip install "dgad-tk[timm]"'
        ) from None
    known = timm.list_models()
    if name not in known:  # timm itself would also take addresses to download from
        raise UserError(f"unknown timm model '{name}'", hint=_nearest(name, known, "timm"))
    return partial(_build_timm, timm, name)


def _build_timm(timm: Any, name: str, in_channels: int, classes: int) -> nn.Module:
    try:
        net: nn.Module = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=classes)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"timm cannot build {name} for {in_channels} channels and {classes} classes: {reason_of(error)}",
            hint="choose another model",
        ) from None
    return net


LIBRARIES: dict[str, Callable[[str], Builder]] = {"torchvision": torchvision_model, "timm": timm_model}
"""What may stand before the colon of a model's name."""
