"""APGD: projected gradient ascent that adapts its step sizes, in batches that stay full.

Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690; in L1 Croce & Hein, ICML 2021,
https://arxiv.org/abs/2103.01208.
"""

from typing import Literal

import numpy as np
import torch
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.inner_max import draw_noise
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import Norm
from evaluators.attacks.arguments import at_least
from evaluators.attacks.autoattack.apgd.l1 import L1Ascents, falling_radii
from evaluators.attacks.autoattack.apgd.state import Ascents, L2Ascents, LinfAscents
from evaluators.attacks.autoattack.dlr import DLR_CLASSES, TARGETED_DLR_CLASSES, dlr, targeted_dlr
from evaluators.attacks.autoattack.seats import Rows, Seats
from evaluators.attacks.native import NativeAttack, images_of_rows, pixel_rows

Loss = Literal["ce", "dlr"]
_FEW = 16
"""Filling or dropping vacant rows costs as much as the updates of a step, so one row in so many has to be vacant."""
ASCENTS: dict[Norm, type[Ascents]] = {"linf": LinfAscents, "l2": L2Ascents, "l1": L1Ascents}


class APGD(NativeAttack):
    """Auto-PGD on the cross-entropy, the DLR loss, or (APGD-T) the targeted DLR loss against one class after another.

    Iterates are those of the authors' code (`pyautoattack`) for the same noise. An image is left alone the moment it
    is broken, and its first adversarial point is the result. For an image that withstands, the result is the point of
    highest loss of its last ascent. Each ascent of a robust image takes `steps` passes forward and backward, and a
    forward pass for the last point.

    An example in Linf with 100 steps. An ascent begins at a random point of the ball with a step size of 2 eps. It is
    checked after 22, 41, 57, 70, 80, 87, 93 and 99 steps. If the loss rose in 16 of the first 22 steps, which is at
    most 75 %, the ascent oscillates: the step size becomes eps, and it goes on from the point of highest loss. The same
    happens where the highest loss has not risen since the checkpoint before, at which the step size stayed. Otherwise
    it goes on where it is, with steps of 2 eps. With `targets=9` an image that withstands has nine such
    ascents, one after another; the first adversarial point in any of them ends them all.

    Args:
        loss: "ce" or "dlr", of the untargeted attack.
        targets: number of classes to move to, the most likely ones but the label first; at most K - 1 are. 0 for the
            untargeted attack.
        steps: of each ascent.
        restarts: ascents per image, or per target of an image.
        eot: passes that a gradient is averaged over, for models that answer at random.
        wide: in L1, spend most steps at 3 and 2 times the radius first, as the standard ensemble does.

    Other arguments are those of `NativeAttack`.

    Raises:
        ValueError: too few classes for the loss, or a count below 1.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        loss: Loss = "ce",
        targets: int = 0,
        steps: int = 100,
        restarts: int = 1,
        eot: int = 1,
        wide: bool = True,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, seed=seed, batch_size=batch_size)
        self.loss, self.steps, self.restarts, self.eot, self.wide = loss, steps, restarts, eot, wide
        classes = estimator.nb_classes
        self.targets = min(targets, classes - 1)
        if loss not in ("ce", "dlr"):
            raise ValueError(f"expected loss ce or dlr, got {loss!r}")
        at_least(0, targets=targets)
        at_least(1, steps=steps, restarts=restarts, eot=eot)
        for wanted, name, least in (
            (targets > 0, "targeted DLR", TARGETED_DLR_CLASSES),
            (targets == 0 and loss == "dlr", "DLR", DLR_CLASSES),
        ):
            if wanted and classes < least:
                raise ValueError(f"the {name} loss is not defined for {classes} classes: expected at least {least}")

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return _Search(self, x, y, index).run()

    def objective(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """The loss to maximise, `(N, K)` and int64 `(N,)` twice to `(N,)`."""
        if self.targets:
            return targeted_dlr(logits, y, target)
        return dlr(logits, y) if self.loss == "dlr" else cross_entropy(logits, y)

    def target_classes(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """The classes that images `(N, C, H, W)` are moved to, in their order, int64 `(N, targets)`."""
        return logits.scatter(1, y[:, None], -torch.inf).topk(self.targets, dim=1).indices

    def broken(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Which of the points `x` `(N, C, H, W)` the search has reached its end at, bool `(N,)`."""
        return self.victim.suspects(logits, y)

    @property
    def schedule(self) -> list[tuple[float, int]]:
        """Radii, as multiples of eps, that an ascent goes through, and its steps in each."""
        return falling_radii(self.steps) if self.norm == "l1" and self.wide else [(1.0, self.steps)]


class _Search:
    """One call of `search`. Images are rows, channels last, as the convolutions read them."""

    def __init__(self, attack: APGD, x: Tensor, y: Tensor, index: Tensor) -> None:
        self.attack, self.y, self.index, self.device = attack, y, index, x.device
        self.shape = tuple(x.shape[1:])
        self.x = pixel_rows(x)
        self.found = self.x.clone()
        self.ascents = ASCENTS[attack.norm]
        lengths = [steps for _, steps in attack.schedule]
        self.windows = np.zeros((len(lengths), max(lengths) + 1), dtype=np.float32)
        for phase, steps in enumerate(lengths):
            self.windows[phase, :steps] = self.ascents.windows(steps)[:steps]  # the last point has nothing to adapt
        needed = np.ones(len(x), dtype=np.bool_)
        self.target = torch.zeros_like(y)[:, None]
        if attack.targets:
            needed, self.target = self._targets()
        jobs = max(1, attack.targets) * attack.restarts
        self.seats = Seats(needed, jobs, attack.batch_size, lengths, few=_FEW)

    def run(self) -> Tensor:
        state: Ascents | None = None
        while True:
            if state is not None:
                state.advance()
                self._resume(state)
            rows = self.seats.admit()
            if len(rows):
                fresh = self._begin(self.seats.image[rows], self.seats.job[rows])
                if state is None:
                    state = fresh
                else:
                    state.put(self._move(rows), fresh)
            if state is None or not self.seats.live.any():
                return images_of_rows(self.found, self.shape)
            if (kept := self.seats.close()) is not None:
                state.keep(self._move(kept))
            self._look(state)
            self.seats.move()

    @torch.no_grad()
    def _targets(self) -> tuple[NDArray[np.bool_], Tensor]:
        """Images that are right as they are, bool `(N,)`; the most likely classes but the label, `(N, targets)`."""
        found, victim = [], self.attack.victim
        for part, y in zip(*(torch.split(each, self.attack.batch_size) for each in (self.x, self.y)), strict=True):
            images = images_of_rows(part, self.shape)
            logits = victim.exact.logits(images)
            missed = self.attack.broken(images, logits, y)
            # An image that only the search gets wrong would have no job.
            missed = victim.confirmed(missed, images, y, certain=victim.logits_prove)
            found.append((missed, self.attack.target_classes(images, logits, y)))
        missed, classes = (torch.cat(each) for each in zip(*found, strict=True))
        return ~missed.cpu().numpy(), classes

    def _begin(self, image: NDArray[np.int64], job: NDArray[np.int64]) -> Ascents:
        """The `job`-th ascent of each `image`."""
        attack = self.attack
        kind = "uniform" if attack.norm == "linf" else "normal"
        who, rank = self._move(image), self._move(job // attack.restarts)
        x = self.x[who]
        noise = torch.empty_like(x)
        for each in np.unique(job):
            rows = self._move(np.flatnonzero(job == each))
            drawn = draw_noise(attack.draws, "apgd", self.shape, self.index[who[rows]], kind, epoch=int(each))
            noise[rows] = pixel_rows(drawn).to(x)
        radius = torch.full_like(x[:, :1], attack.schedule[0][0] * attack.eps)
        begin = L1Ascents.begin_wide if len(attack.schedule) > 1 else self.ascents.begin
        return begin(x, noise, radius, self.y[who], self.target[who, rank])

    def _resume(self, state: Ascents) -> None:
        """Restart ascents whose radius falls, each from its best point."""
        rows = np.flatnonzero(self.seats.resumed)
        if len(rows) == 0:
            return
        assert isinstance(state, L1Ascents)
        at = self._move(rows)
        radii = [self.attack.schedule[phase][0] * self.attack.eps for phase in self.seats.phase[rows]]
        radius = state.x.new_tensor(radii)[:, None]
        state.put(at, state.resume(state.x[at], state.best[at], radius, state.y[at], state.target[at]))

    def _look(self, state: Ascents) -> None:
        """Ask the model about all points; record broken images and better points; go back where `check` says so."""
        seats, ending = self.seats, self.seats.ending
        loss, broken, gradient = self._ask_all(state, ending)
        improved = state.observe(loss, gradient)
        window = self.windows[seats.phase, seats.step]
        back = state.check(self._move(window)) if window.any() else torch.zeros_like(improved)
        # The host needs these three; one transfer brings them.
        told = torch.stack([broken, improved, back]).cpu().numpy()
        if (hit := self._confirmed(state, np.flatnonzero(told[0] & seats.judged))).size:
            image, first = np.unique(seats.image[hit], return_index=True)
            self.found.index_copy_(0, self._move(image), state.point.index_select(0, self._move(hit[first])))
            seats.dismiss(image)
        if (rows := np.flatnonzero(told[1] & seats.live)).size:
            state.improve(self._move(rows))
        if (rows := np.flatnonzero(told[2] & seats.live)).size:
            state.go_back(self._move(rows))
        if (rows := np.flatnonzero(seats.leaving & (seats.job == seats.jobs - 1))).size:
            self.found.index_copy_(0, self._move(seats.image[rows]), state.best.index_select(0, self._move(rows)))

    def _confirmed(self, state: Ascents, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `rows` whose points are broken: the runtime says so, which a twin may differ from."""
        victim = self.attack.victim
        if victim.logits_prove or not rows.size:
            return rows
        at = self._move(rows)
        points = images_of_rows(state.point[at], self.shape)
        broken = victim.confirmed(torch.ones_like(at, dtype=torch.bool), points, state.y[at], certain=False)
        return np.asarray(rows[broken.cpu().numpy()])

    def _ask_all(self, state: Ascents, ending: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Losses `(N,)`, which points may break the model, bool `(N,)`, and gradients, zero for ascents that end."""
        if not ending.any():
            return self._ask(state.point, state.y, state.target, gradient=True)
        loss = torch.zeros_like(state.best_loss)
        broken, gradient = loss > 0, torch.zeros_like(state.point)
        for rows, wanted in ((ending, False), (self.seats.live & ~ending, True)):
            if rows.any():
                at = self._move(np.flatnonzero(rows))
                loss[at], broken[at], gradient[at] = self._ask(
                    state.point[at], state.y[at], state.target[at], gradient=wanted
                )
        return loss, broken, gradient

    def _ask(self, point: Tensor, y: Tensor, target: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The same for some points: the mean gradient of `eot` passes, the rest from the last pass."""
        images = images_of_rows(point, self.shape).detach().requires_grad_(gradient)
        total: Tensor | float = 0.0
        for _ in range(self.attack.eot if gradient else 1):
            logits = self.attack.victim.logits(images)
            loss = self.attack.objective(logits, y, target)
            if gradient:
                (each,) = torch.autograd.grad(loss.sum(), images)
                total = each if self.attack.eot == 1 else total + each / self.attack.eot
        # A step overwrites the gradient, which may be an expanded tensor.
        mean = torch.zeros_like(point) if isinstance(total, float) else finite(pixel_rows(total)).contiguous()
        return loss.detach(), self.attack.broken(images.detach(), logits.detach(), y), mean

    def _move(self, array: NDArray[np.int64] | NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
