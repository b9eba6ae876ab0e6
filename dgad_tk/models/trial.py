"""A network tried on two images before it is trained: whether it takes them, and whether its answers can be trained."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgad_tk.common import UserError, reason_of

_OWN = "a network maps (N, in_channels, H, W) to logits (N, classes), in eval and in training mode"
_TRAINS = "in training mode"


def check_input(model: nn.Module, name: str, shape: tuple[int, int, int], classes: int, *, own: bool = False) -> None:
    """Try a network on two grey images `(C, H, W)`, in eval mode on its device; its own mode is restored.

    Args:
        own: it is a user's own, which may fail in any way. It is tried in training mode too, on a copy, and its answers
            have to be logits that have gradients to the images.

    Raises:
        UserError: it takes no images of this size, or does not return logits `(N, classes)` that can be trained.
    """
    if own:
        _check_weights(model, name)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            _try(model, name, shape, classes, own=own)
    finally:
        model.train(was_training)
    if own:
        twin = _copied(model, name)
        _check_training(twin.train(), name, shape, classes)
        _copied(twin, name, " once it has run")


def check_rebuilt(build: Callable[[], nn.Module], model: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """See that a network is all in its weights: built again, and given them, it answers the same in eval mode.

    Raises:
        UserError: it does not, so what would be saved of it is not the network.
    """
    other = build()
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"{name} builds another network each time: the weights of the first do not fit the second: "
            f"{reason_of(error)}",
            hint="let it depend on nothing but in_channels and classes",
        ) from None
    answers = []
    for each in (model, other):
        was_training = each.training
        torch.manual_seed(0)  # of networks that draw numbers
        with torch.no_grad():
            answers.append(each.eval()(_images(each, shape)))
        each.train(was_training)
    if not torch.allclose(answers[0], answers[1], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise UserError(
            f"{name} has weights that are not saved: built again, with all that its state_dict() holds, it answers "
            "differently",
            hint="modules in a plain list belong into an nn.ModuleList, and tensors into parameters or buffers",
        )


def _check_weights(model: nn.Module, name: str) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_meta:
            raise UserError(f"{name} has weights without values, on torch's meta device", hint="build it on the CPU")
    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"{name} has weights of {parameter.dtype}, and training wants torch.float32",
                hint="leave them in float32: `dgad export` rounds the result, and --precision bf16 is for speed",
            )


def _copied(model: nn.Module, name: str, when: str = "") -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise UserError(
            f"{name} cannot be copied{when}, and attacks run copies: {reason_of(error)}", hint=_OWN
        ) from None


def _check_training(model: nn.Module, name: str, shape: tuple[int, int, int], classes: int) -> None:
    """Try a network in training mode: its logits have gradients to the weights and to the images."""
    if not _try(model, name, shape, classes, own=True, mode=f" {_TRAINS}").requires_grad:
        raise UserError(f"{name} gives logits without gradients {_TRAINS}", hint=_OWN)
    x = _images(model, shape).requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(model(x).sum(), x, allow_unused=True)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise UserError(f"{name} has no gradient {_TRAINS}: {reason_of(error)}", hint=_OWN) from None
    if gradient is None:
        raise UserError(
            f"the logits of {name} have no gradient with respect to the images, which attacks follow",
            hint="compute with torch alone between images and logits, without detach() or numpy()",
        )


def _try(
    model: nn.Module, name: str, shape: tuple[int, int, int], classes: int, *, own: bool, mode: str = ""
) -> Tensor:
    """The logits of two grey images, which are of the right shape."""
    size = "x".join(map(str, shape))
    expected = Exception if own else (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
    images = _images(model, shape)
    try:
        logits: object = model(images)
    except expected as error:
        raise UserError(
            f"{name} takes no {size} images{mode}: {reason_of(error)}",
            hint=_OWN
            if own
            else "choose another --image-size, or a model of `dgad list models` without a colon: these take any",
        ) from None
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else _kind(logits)
        raise UserError(
            f"{name} does not turn {size} images into {classes} logits{mode}"
            + (f": of two images it makes {found}, expected (2, {classes})" if own else ""),
            hint=_OWN if own else "choose another model",
        )
    if own and not torch.equal(images, _images(model, shape)):
        raise UserError(
            f"{name} changes the images that it is given, in place",
            hint="x = x - mean makes new ones, x -= mean does not",
        )
    if own and classes > 1 and bool((logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-4).all()):
        raise UserError(
            f"{name} returns probabilities{mode}, and training and attacks want logits",
            hint="leave out the softmax at its end",
        )
    return logits


def _images(model: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.full((2, *shape), 0.5, device=device)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
