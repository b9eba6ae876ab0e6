"""Gradients through operators that have none: roundings, comparisons, casts to whole numbers.

Such an operator hides a network from gradients and protects nothing. Backward Pass Differentiable Approximation
(Athalye, Carlini & Wagner, ICML 2018, https://arxiv.org/abs/1802.00420, section 4.1) keeps the forward pass and puts
another function's gradient in its place. Here that function is:

    round, floor, ceil, trunc, a cast to whole numbers    the identity
    sign(x)                                               tanh(x / t)
    a > b, a >= b, a < b, a <= b                          sigmoid of their difference over t
    where(a > b, x, y), masks that multiply, and, or, not the mixture w x + (1 - w) y of that sigmoid w

t is the mean size, over one image, of what is compared, so that no image's gradient depends on another image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dgad_tk.ascent.rounding import without_rounding

_WEIGHT = "_dgad_soft"
"""The attribute of a mask, or of whole numbers, that holds the differentiable tensor that they stand for."""
_ROUNDINGS = {"round", "floor", "ceil", "trunc", "fix"}
_GREATER, _LESS = {"gt", "ge", "greater", "greater_equal"}, {"lt", "le", "less", "less_equal"}
_CASTS = {"to", "float", "double", "half", "type", "type_as", "int", "long", "to_copy"}
_LIKE = {"add", "sub", "mul", "div", "neg", "reshape", "view", "flatten", "unsqueeze", "squeeze", "expand", "transpose"}
_LIKE |= {"permute", "expand_as", "true_divide", "contiguous", "clone"}
"""Functions that mean for a differentiable tensor what they mean for the mask or the whole numbers in its place."""
_TINY = 1e-12


class _Swapped(torch.autograd.Function):
    """One tensor's values with another one's gradient."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class StraightThrough(TorchFunctionMode):
    """While this is open, torch's functions that have no gradient get one. Values stay what they are.

    Args:
        smooth: leave roundings and casts to whole numbers out, so that values change too.

    Attributes:
        met: names of those that were met where a gradient was needed.
    """

    def __init__(self, *, smooth: bool = False) -> None:
        super().__init__()
        self.smooth, self.met = smooth, set[str]()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        written = getattr(func, "__name__", "").partition(".")[0]
        in_place = written.endswith("_") and not written.endswith("__")  # what its input was is gone
        name = written.strip("_")
        found = func(*args, **kwargs)
        rule = None if in_place else _RULES.get(name)
        if rule is None or not isinstance(found, Tensor) or not torch.is_grad_enabled():
            return found
        soft = rule(name, found, args, kwargs)
        if soft is None:
            return found
        self.met.add(name)
        if not found.is_floating_point():
            setattr(found, _WEIGHT, soft)
            return found
        if self.smooth and (name in _ROUNDINGS or (name in _CASTS and _is_whole(args[0]))):
            return soft
        return _Swapped.apply(soft, found)


Rule = Callable[[str, Tensor, Sequence[Any], Mapping[str, Any]], Tensor | None]
"""What a function stands for: its name, what it gave, and its arguments, to a differentiable tensor or None."""


def _needs(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _soft(value: Any) -> Any:
    """What a value stands for: the tensor behind a mask, or a float tensor or number itself."""
    if not isinstance(value, Tensor):
        return value
    return getattr(value, _WEIGHT, value if value.is_floating_point() else value.float())


def _is_soft(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, _WEIGHT)


def _is_whole(value: Any) -> bool:
    """Whole numbers that stand for a differentiable tensor; a mask is none."""
    return _is_soft(value) and value.dtype is not torch.bool


def _width(gap: Tensor) -> Tensor:
    """The mean size of an image's entries, which broadcasts against the gap."""
    size = gap.detach().abs()
    axes = list(range(1, gap.dim()))
    return (size.mean(dim=axes, keepdim=True) if axes else size) + _TINY


def _rounding(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    x = args[0] if args else kwargs.get("input")
    return x if _needs(x) else None


def _sign(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    x = args[0] if args else kwargs.get("input")
    return torch.tanh(x / _width(x)) if isinstance(x, Tensor) and _needs(x) else None


def _comparison(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) < 2 or not (_needs(args[0]) or _needs(args[1])):
        return None
    gap = args[0] - args[1] if name in _GREATER else args[1] - args[0]
    return torch.sigmoid(gap / _width(gap))


def _mixture(weight: Tensor, x: Any, y: Any) -> Tensor:
    """w x + (1 - w) y. What is not finite is in the branch that is not taken, and must not spread from there."""
    x, y = (
        torch.nan_to_num(each, nan=0.0, posinf=0.0, neginf=0.0) if isinstance(each, Tensor) else each
        for each in (_soft(x), _soft(y))
    )
    mixed: Tensor = weight * x + (1 - weight) * y
    return mixed


def _where(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) < 3:
        return None
    mask, x, y = args[:3]
    if name == "where" and isinstance(x, Tensor) and x.dtype is torch.bool:  # Tensor.where(condition, other)
        mask, x = x, mask
    if name == "masked_fill":
        x, mask, y = args[:3]
        x, y = y, x
    if not _is_soft(mask):
        return None
    return _mixture(_soft(mask), x, y)


def _threshold(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """x above the threshold, else a value; a ReLU, which does not jump, has a gradient of its own."""
    x, level, value = _named(args, kwargs, ("input", "threshold", "value"))
    if not _needs(x) or level == value:
        return None
    return _mixture(torch.sigmoid((x - level) / _width(x - level)), x, value)


def _shrink(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Hardshrink: x where its size is above the threshold, else 0."""
    x, level = _named(args, kwargs, ("input", "lambd"))
    if not _needs(x):
        return None
    gap = x.abs() - (0.5 if level is None else level)
    return _mixture(torch.sigmoid(gap / _width(gap)), x, 0.0)


def _named(args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in enumerate(names)]


def _logic(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if not any(_is_soft(each) for each in args):
        return None
    first, *rest = map(_soft, args[:2])
    if name.endswith(("not", "invert")):
        return 1 - first  # type: ignore[no-any-return]
    return first * rest[0] if name.endswith("and") else first + rest[0] - first * rest[0]  # type: ignore[no-any-return]


def _cast(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    x = args[0]
    if _is_soft(x):
        soft: Tensor = _soft(x)
        return soft.to(found.dtype) if found.is_floating_point() else soft
    whole = not found.is_floating_point() and found.dtype is not torch.bool
    return x if whole and _needs(x) else None


def _like(name: str, found: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The same function of what the arguments stand for."""
    if not any(_is_soft(each) for each in args):
        return None
    soft: Tensor = getattr(torch.Tensor, name)(*map(_soft, args), **kwargs)
    return soft


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ROUNDINGS, _rounding),
    **dict.fromkeys(("sign", "sgn"), _sign),
    **dict.fromkeys(_GREATER | _LESS, _comparison),
    **dict.fromkeys(("where", "masked_fill"), _where),
    **dict.fromkeys(("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not"), _logic),
    **dict.fromkeys(("and", "or", "invert"), _logic),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_LIKE, _like),
    "threshold": _threshold,
    "hardshrink": _shrink,
}


class Straight(nn.Module):
    """A module, run with gradients that pass straight through.

    Args:
        module: gives logits `(N, K)`. What it computes in torch's functions is seen; TorchScript is not.
        smooth: leave its roundings out, those of quantised layers too.
    """

    def __init__(self, module: nn.Module, *, smooth: bool = False) -> None:
        super().__init__()
        self.module, self.smooth = module, smooth

    def forward(self, x: Tensor) -> Tensor:
        with StraightThrough(smooth=self.smooth), without_rounding(self.smooth):
            logits: Tensor = self.module(x)
        return logits


def hidden(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> set[str]:
    """Names of the functions without a gradient that gradients of the module pass, seen on a grey image of `shape`."""
    image = torch.full((2, *shape), 0.5, device=device, requires_grad=True)
    with torch.enable_grad(), StraightThrough() as mode:
        module(image)
    met: set[str] = mode.met
    return met


def rounds(names: set[str]) -> bool:
    """Whether any of the functions is a rounding, which can be left out."""
    return bool(names & (_ROUNDINGS | _CASTS))
