"""In which precision a search runs the module that gives gradients, and what that is good for on a machine."""

import platform
from collections.abc import Collection
from typing import Literal, get_args

import torch

from dgad_tk.artifacts.predictor import Predictor

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Of the passes in which our own attacks search. The judge is the deployed runtime, as it is."""


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16. Otherwise torch computes it by way of float32, in more time."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not mkldnn or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True  # on ARM this is the answer; on x86 any AVX-512 will do for oneDNN
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def remarks(predictor: Predictor, precision: Precision, used: Collection[Precision]) -> list[str]:
    """Sentences for one who asked for a search in `precision`; `used` are those of the attacks that run."""
    if precision == "fp32":
        return []
    if precision not in used:
        return [f"none of these attacks searches in {precision}: they follow no gradients, or keep to fp32"]
    found = []
    if not multiplies_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        found.append("no units for bfloat16 here: --search-precision bf16 takes 2 to 30 times as long as fp32")
    if predictor.precision == "int8":
        found.append("bf16 rounds the sums of an INT8 graph again: short searches such as pgd may break fewer images")
    return found
