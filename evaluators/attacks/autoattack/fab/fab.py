"""FAB: the nearest image that a model gets wrong, by projections onto the linearised decision boundary."""

from dataclasses import dataclass

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.inner_max import draw_noise
from dgad_tk.config.threat import Norm
from evaluators.attacks.arguments import at_least
from evaluators.attacks.autoattack.fab.projections import Hyperplane, length
from evaluators.attacks.autoattack.seats import Seats
from evaluators.attacks.native import NativeAttack, images_of_rows, pixel_rows, wrong

ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
"""The paper's values (section 4.1): most weight of the image's own projection, extrapolation, and step back."""
_BLOCK = 3 * 2**15
"""Numbers in a block of images that is moved at once on a CPU. Several such blocks fit into its cache."""
_SMALLEST_STEP = 1e-8
_START_RADIUS = 0.5
_DUAL: dict[str, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


@dataclass
class Nearest:
    """The nearest image so far that the model gets wrong, `(N, D)`, and its distance `(N,)`, infinite at first."""

    image: Tensor
    distance: Tensor

    def offer(self, rows: Tensor, points: Tensor, distance: Tensor, missed: Tensor) -> None:
        """Keep the points that the model gets wrong (`missed`) and that are nearer than the nearest so far.

        `rows` may hold an image several times, once per job.
        """
        better = (missed & (distance < self.distance[rows])).nonzero()[:, 0]
        if not len(better):
            return
        self.distance.scatter_reduce_(0, rows[better], distance[better], "amin")
        better = better[distance[better] == self.distance[rows[better]]]
        # The first of two equally near points counts, whatever the order in which a device writes.
        first = rows.new_full((len(self.distance),), len(rows))
        first.scatter_reduce_(0, rows[better], better, "amin")
        better = better[first[rows[better]] == better]
        self.image[rows[better]] = points[better]


class FAB(NativeAttack):
    """Fast Adaptive Boundary attack (Croce & Hein, ICML 2020, https://arxiv.org/abs/1907.02044, algorithm 1) and FAB-T.

    A step linearises the boundary at the current point x. It projects x and the image o onto it, goes ETA times as far
    with both, and combines the results as (1 - alpha) x' + alpha o'. Alpha is x's distance divided by the sum of both
    distances, at most ALPHA_MAX. If the model gets the new point wrong, the point is kept if it is the nearest so far,
    and the next step starts from o + BETA (x - o). The boundary is the one to the class that is nearest by the
    linearisation. In FAB-T (Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, section 4) it is the one to a
    target class, which takes one gradient per step in place of K - 1. As in the authors' code there is no final search
    on the line between image and point.

    A job is an image with a target and a restart. Jobs share full batches: see `Seats`. Gradients are float32 always: a
    search goes to the boundary of what it is given and no farther, and bf16 has another one than the runtime.

    Args:
        norm: of the projections, and of the distance that is made small.
        eps: a wrong image within this distance is a success, and ends all jobs of its image.
        targets: 0 looks at all classes in every step; n is FAB-T with the n most likely other classes in turn.
        steps: of each job; each is a forward pass with its backward pass (K - 1 of them without targets), and another
            forward pass that judges the new point.
        restarts: the first starts at the image, later ones at random points at half of eps.
        minimal: search on after a success, for the nearest point. Outcomes within eps are the same.

    Other arguments are those of `NativeAttack`.

    Raises:
        ValueError: a parameter out of range.
    """

    lowers = False

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        targets: int = 0,
        steps: int = 100,
        restarts: int = 1,
        minimal: bool = False,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, seed=seed, batch_size=batch_size)
        at_least(0, targets=targets)
        at_least(1, steps=steps, restarts=restarts)
        self.targets, self.steps, self.restarts, self.minimal = targets, steps, restarts, minimal

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The nearest image found that the model gets wrong; the image itself if it is wrong or none was found."""
        logits = torch.cat([self.victim.verdicts(part) for part in torch.split(x, self.batch_size)])
        missed = wrong(logits, y)
        flat, shape, device = pixel_rows(x), tuple(x.shape[1:]), x.device
        found = Nearest(flat.clone(), torch.where(missed, 0.0, torch.inf))
        targets = self._likeliest(logits, y)
        jobs = targets.shape[1] * self.restarts
        seats = Seats(~missed.cpu().numpy(), jobs, self.batch_size, [self.steps - 1])
        origin, point = flat.new_zeros(2, len(seats.live), flat.shape[1])
        while True:
            given = seats.admit()
            if given.size:
                rows, image = (torch.from_numpy(each).to(device) for each in (given, seats.image[given]))
                origin[rows] = flat[image]
                point[rows] = self._start(flat[image], seats.job[given], index[image], shape)
            if not seats.live.any():
                return images_of_rows(found.image, shape)
            if (kept := seats.close()) is not None:
                rows = torch.from_numpy(kept).to(device)
                origin, point = origin[rows], point[rows]
            if given.size or kept is not None:
                image, rank = (torch.from_numpy(each).to(device) for each in (seats.image, seats.job // self.restarts))
                target, labels = targets[image, rank], y[image]
            missed, distance = self._step(point, origin, target, labels, shape)
            found.offer(image, point, distance, missed)
            torch.lerp(origin, point, torch.where(missed, BETA, 1.0)[:, None], out=point)
            if not self.minimal:
                seats.dismiss(np.flatnonzero((found.distance <= self.eps).cpu().numpy()))
            seats.move()

    def _likeliest(self, logits: Tensor, y: Tensor) -> Tensor:
        """The most likely classes but the label, `(N, targets)`; without targets one, which nothing looks at."""
        count, others = max(self.targets, 1), logits.shape[1] - 1
        if count > others:
            self.warnings.append(f"FAB: {others} targets instead of {count}: there are only {others + 1} classes")
            count = others
        return logits.scatter(1, y[:, None], -torch.inf).topk(count, dim=1).indices

    def _start(self, origin: Tensor, job: NDArray[np.int64], index: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Where jobs begin, `(S, D)`: at the image, or from the second start on at a random point around it."""
        point = origin.clone()
        for each in np.unique(job):
            rank, restart = divmod(int(each), self.restarts)
            if restart == 0:
                continue
            rows = torch.from_numpy(np.flatnonzero(job == each)).to(origin.device)
            kind = "uniform" if self.norm == "linf" else "normal"
            noise = pixel_rows(draw_noise(self.draws, "fab start", shape, index[rows], kind, epoch=restart, step=rank))
            noise *= (_START_RADIUS * self.eps / length(noise, self.norm))[:, None]
            point[rows] = (point[rows] + noise).clamp_(0, 1)
        return point

    def _step(
        self, point: Tensor, origin: Tensor, target: Tensor, labels: Tensor, shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Move `point` in place; where the model gets it wrong then, bool `(S,)`, and its distance `(S,)`."""
        gap, normal = self._boundary(images_of_rows(point, shape), target, labels)
        size = max(1, _BLOCK // point.shape[1]) if point.device.type == "cpu" else len(point)
        blocks = zip(*(torch.split(each, size) for each in (point, origin, gap, normal)), strict=True)
        distance = torch.cat([self._move(*block) for block in blocks])
        images = images_of_rows(point, shape)
        missed = wrong(self.victim.answers(images), labels)
        # A point outside the ball, which no verdict is about, only shows the way.
        telling = missed if self.minimal else missed & (distance <= self.eps)
        return missed & ~telling | self.victim.confirmed(telling, images, labels), distance

    def _boundary(self, images: Tensor, target: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The other class's logit minus the label's, `(S,)`, and the gradient of this difference, `(S, D)`."""
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.victim.logits(images)
            own = logits.gather(1, labels[:, None])[:, 0]
            classes = logits.shape[1]
            rivals = [target] if self.targets else [other + (labels <= other) for other in range(classes - 1)]
            ahead = [logits.gather(1, rival[:, None])[:, 0] - own for rival in rivals]
        gap, normal = ahead[0].detach(), _gradient(ahead[0], images, again=len(ahead) > 1)
        if len(ahead) > 1:
            way = _way(gap, normal, self.norm)
            for each in ahead[1:]:
                other_gap, other_normal = each.detach(), _gradient(each, images, again=each is not ahead[-1])
                other_way = _way(other_gap, other_normal, self.norm)
                nearer = other_way < way
                way, gap = torch.where(nearer, other_way, way), torch.where(nearer, other_gap, gap)
                normal = torch.where(nearer[:, None], other_normal, normal)
        sane = torch.isfinite(gap + normal.sum(dim=1))
        if not sane.all():  # without a usable gradient there is no boundary to go to
            gap, normal = torch.where(sane, gap, 0.0), torch.where(sane[:, None], normal, 0.0)
        return gap, normal

    def _move(self, point: Tensor, origin: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """Move `point` in place; its new distance from `origin`, `(S,)`."""
        plane = Hyperplane(normal, self.norm)
        step, way = plane.step(point, gap)
        origin_step, origin_way = plane.step(origin, gap + (origin - point).mul_(normal).sum(dim=1))
        way, origin_way = way.clamp(min=_SMALLEST_STEP), origin_way.clamp(min=_SMALLEST_STEP)
        alpha = (way / (way + origin_way)).clamp(max=ALPHA_MAX)[:, None]
        point.add_(step, alpha=ETA).lerp_(origin_step.mul_(ETA).add_(origin), alpha).clamp_(0, 1)
        return length(torch.sub(point, origin, out=step), self.norm)


def _gradient(of: Tensor, images: Tensor, *, again: bool) -> Tensor:
    """Gradient of `of` `(N,)`, one number per image, finite, `(N, D)`. The graph is kept if it is needed `again`."""
    # An image's logits depend on that image alone, so the gradient of the sum holds each image's gradient.
    return finite(pixel_rows(torch.autograd.grad(of.sum(), images, retain_graph=again)[0]))


def _way(gap: Tensor, normal: Tensor, norm: Norm) -> Tensor:
    """Distance to the hyperplane, ignoring the box, `(N,)`; infinite where the gradient is unusable."""
    return torch.nan_to_num(gap.abs() / (1e-12 + length(normal, _DUAL[norm])), nan=torch.inf, posinf=torch.inf)
