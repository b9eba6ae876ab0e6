"""Where ascents start."""

import torch
from torch import Tensor

from dgad_tk.ascent.balls import BALLS
from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.inner_max import draw_noise
from dgad_tk.config.threat import Norm
from dgad_tk.draws import Draws
from evaluators.attacks.fast.rounds import Round
from evaluators.attacks.native import Victim

SPREAD = 5
"""Steps of a spread start, of length eps each."""


def start_points(
    victim: Victim, draws: Draws, of: Round, x: Tensor, y: Tensor, index: Tensor, rank: Tensor, norm: Norm, eps: float
) -> Tensor:
    """The starts of N ascents, `(N, C, H, W)`, inside the ball and [0, 1].

    A spread start climbs a random sum of the logits, in which the label's weight is negative. Such starts lie further
    apart than random points do (output diversified sampling: Tashiro et al., NeurIPS 2020,
    https://arxiv.org/abs/2003.06878, equation 2).

    Args:
        x: clean images, float32 `(N, C, H, W)`.
        y: labels, int64 `(N,)`.
        index: dataset indices, int64 `(N,)`.
        rank: place of each ascent's target, int64 `(N,)`: one image's ascents in one round have different draws.
    """
    if of.start == "clean":
        return x
    ball, kind = BALLS[norm](eps), "uniform" if norm == "linf" else "normal"
    noise = torch.empty_like(x)
    for each in torch.unique(rank).tolist():
        rows = rank == each
        noise[rows] = draw_noise(draws, f"fast {of.name}", tuple(x.shape[1:]), index[rows], kind, epoch=each)
    start = ball.project(ball.random_point(x, lambda _: noise), x)
    if of.start == "uniform":
        return start
    weights: Tensor | None = None
    for _ in range(SPREAD):
        images = start.detach().requires_grad_()
        logits = victim.logits(images)
        if weights is None:
            weights = _weights(draws, of, y, index, rank, logits.shape[1])
        (gradient,) = torch.autograd.grad((logits * weights).sum(), images)
        start = ball.project(ball.step(images.detach(), finite(gradient), eps), x)
    return start


def _weights(draws: Draws, of: Round, y: Tensor, index: Tensor, rank: Tensor, classes: int) -> Tensor:
    """Uniform on [-1, 1) for each class, `(N, K)`, but on (-1, 0] for the label."""
    weights = torch.empty(len(y), classes, device=y.device)
    for each in torch.unique(rank).tolist():
        rows = rank == each
        weights[rows] = 2 * draws.uniform(f"fast weights {of.name}", (classes,), index=index[rows], epoch=each) - 1
    return weights.scatter(1, y[:, None], -weights.gather(1, y[:, None]).abs())
