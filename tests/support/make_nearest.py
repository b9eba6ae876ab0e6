"""Make `tests/data/attacks/nearest.npz` once more: the first points of adversarial-library's minimum-norm attacks.

    python tests/support/make_nearest.py FOLDER

FOLDER holds a clone of jeromerony/adversarial-library at COMMIT; nothing is fetched here. Its code runs as it is, on
the CPU and in float64; `visdom`, which it imports and does not need for this, stands in as an empty module.
"""

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from nearest_steps import DATA, STEPS, Remembering, asked, images
from torch import Tensor, nn

COMMIT = "9dec220e418e2da8e799f682822209277ab8c31d"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    sys.path.insert(0, str(parser.parse_args().folder))
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    torch.set_default_dtype(torch.float64)
    from adv_lib.attacks import ddn, fmn, sigma_zero

    runs: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
        "fmn/linf": lambda net, x, y: fmn(net, x, y, norm=float("inf"), steps=STEPS),
        "fmn/l2": lambda net, x, y: fmn(net, x, y, norm=2, steps=STEPS),
        "fmn/l1": lambda net, x, y: fmn(net, x, y, norm=1, steps=STEPS),
        "fmn/l0": lambda net, x, y: fmn(net, x, y, norm=0, steps=STEPS),
        "ddn/l2": lambda net, x, y: ddn(net, x, y, steps=STEPS, levels=None),
        "sigma-zero/l0": lambda net, x, y: sigma_zero(net, x, y, num_steps=STEPS),
    }
    found = {}
    for where in ("grey", "edges"):
        for name, run in runs.items():
            net = Remembering()
            run(net, *images(where == "edges"))
            found[f"{name}/{where}"] = asked(net)
    np.savez_compressed(DATA, **found)


if __name__ == "__main__":
    main()
