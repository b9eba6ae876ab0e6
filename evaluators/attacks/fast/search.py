"""One call of the fast ensemble: its stages, on the images of the call."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.ascent.losses import margin
from evaluators.attacks.autoattack.malt import target_order
from evaluators.attacks.autoattack.seats import even
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.autoattack.stages import CLOSING as LAST
from evaluators.attacks.autoattack.stages import TARGETS
from evaluators.attacks.fast.alarm import FIRED, goes_off, tried
from evaluators.attacks.fast.ascents import UNTARGETED, Ascents, ascend
from evaluators.attacks.fast.progress import Progress
from evaluators.attacks.fast.rounds import CLOSING, FIRST, RESTARTS, TARGETED, Round
from evaluators.attacks.fast.starts import start_points
from evaluators.attacks.native import NativeAttack, wrong
from evaluators.target.ball import into_ball

ROUNDS = {"untargeted": FIRST, "targeted": TARGETED, "restarts": RESTARTS, LAST: CLOSING}


class Search:
    """The search of N images.

    Args:
        attack: that it belongs to.
        x: clean images, float32 `(N, C, H, W)`.
        y: labels, int64 `(N,)`.
        index: dataset indices, int64 `(N,)`.
        alarm: queries per image of random search, where it tries some images.
        queries: where it attacks all.
        before: what `stored` gave, to go on from.
    """

    _right: NDArray[np.bool_]

    def __init__(
        self,
        attack: NativeAttack,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        *,
        alarm: int,
        queries: int,
        before: dict[str, Any] | None = None,
    ) -> None:
        self.attack, self.victim, self._queries = attack, attack.victim, (alarm, queries)
        self.x, self.y, self.index = x, y, index
        self.images = x.cpu().numpy()
        if before is None:
            self._right = self._held(self.images, torch.arange(len(x), device=x.device)).cpu().numpy()
            shape = len(x), min(TARGETS, attack.estimator.nb_classes - 1)
            targets = torch.zeros(shape, dtype=torch.int64, device=x.device)
            self.progress = Progress.begin(x, self._clean(), targets)
            # An image that is wrong as it is needs no search.
            self.progress.settled |= ~torch.from_numpy(self._right).to(x.device)
        else:
            self._right = before.pop("right")
            self.progress = Progress.from_arrays(before, x.device)

    @property
    def held(self) -> NDArray[np.bool_]:
        """Images that were right and still are, bool `(N,)`."""
        return np.asarray(self._right & ~self.progress.broken.cpu().numpy())

    @property
    def _left(self) -> Tensor:
        """Numbers of the images that `held` names, int64."""
        return torch.from_numpy(np.flatnonzero(self.held)).to(self.x.device)

    def run(self, stage: str) -> list[str]:
        """Run a stage, and return sentences about it for the reader."""
        if stage == "square":
            return self._square()
        for each in ROUNDS[stage]:
            if len(left := self._left if each.exact else self.progress.left):
                self._round(each, left)
        return []

    def points(self) -> NDArray[np.float32]:
        """The adversarial image of each, or its point of the lowest lead, inside the ball, `(N, C, H, W)`."""
        return self._points(torch.arange(len(self.x), device=self.x.device))

    def stored(self) -> dict[str, NDArray[Any]]:
        """What another search needs to go on: `before`."""
        return {"right": self._right, **self.progress.to_arrays()}

    def _points(self, rows: Tensor) -> NDArray[np.float32]:
        points, clean = self.progress.point[rows].cpu().numpy(), self.images[rows.cpu().numpy()]
        return into_ball(points, clean, self.attack.norm, self.attack.eps)

    def _clean(self) -> Tensor:
        """The label's lead at the clean images by the module, `(N,)`; infinite where that gives no numbers."""
        with torch.no_grad():
            parts = zip(*(torch.split(each, self.attack.batch_size) for each in (self.x, self.y)), strict=True)
            lead = torch.cat([margin(self.victim.logits(x), y) for x, y in parts])
        return torch.where(lead.isnan(), torch.inf, lead)  # below NaN there is nothing, so no point would be kept

    def _round(self, now: Round, left: Tensor) -> None:
        progress = self.progress
        if now.exact:  # the leads so far are those of bf16
            progress.lead[left] = self._lead(self._points(left), left)
        before = progress.lead.clone()
        if now is TARGETED[0]:
            settings = self.attack.norm, progress.targets.shape[1]
            batch = self.attack.batch_size
            progress.targets[left] = target_order(self.victim, self.x[left], self.y[left], *settings, batch_size=batch)
        ranks = [rank for rank in now.ranks if rank < progress.targets.shape[1]]
        if now.ranks and not ranks:
            return
        target = torch.cat([self._target(now, left, rank) for rank in ranks or [0]])
        image = left.repeat(len(ranks) or 1)
        rank = torch.tensor(ranks or [0], device=left.device).repeat_interleave(len(left))
        size = even(len(image), self.attack.batch_size)
        for rows in torch.split(torch.arange(len(image), device=image.device), size):
            rows = rows[~progress.broken[image[rows]]]
            if len(rows):
                self._ascend(now, image[rows], target[rows], rank[rows])
        logits = self._runtime(self._points(left))
        progress.judge(left, wrong(logits, self.y[left]), margin(logits, self.y[left]))
        if now.settles:
            progress.settle(before)

    def _target(self, now: Round, image: Tensor, rank: int) -> Tensor:
        if not now.ranks:
            return torch.full_like(image, UNTARGETED)
        return self.progress.nearest(image, rank) if now.restart else self.progress.targets[image, rank]

    def _ascend(self, now: Round, image: Tensor, target: Tensor, rank: Tensor) -> None:
        attack, x, y = self.attack, self.x[image], self.y[image]
        ball = attack.norm, attack.eps
        victim = self.victim.exact if now.exact else self.victim
        if now.start == "best":
            start = self.progress.point[image]
        else:
            start = start_points(victim, attack.draws, now, x, y, self.index[image], rank, *ball)
        ends = ascend(victim, Ascents(image, x, y, target, start), norm=attack.norm, eps=attack.eps, steps=now.steps)
        self.progress.record(image, target, ends)

    def _square(self) -> list[str]:
        """Let random search try some of the images left, and all of them if the alarm goes off."""
        left = self._left
        some = left[tried(self.attack.draws, self.index[left])]
        found = self._random(some, self._queries[0])
        reached = self._lead(found, some), self._lead(self._points(some), some)
        if not goes_off(~self._held(found, some), *reached):
            return []
        found = self._random(left, self._queries[1])
        broken = ~self._held(found, left)
        self.progress.point[left[broken]] = torch.from_numpy(found).to(left.device)[broken]
        self.progress.broken[left[broken]] = True
        return [FIRED]

    def _random(self, rows: Tensor, queries: int) -> NDArray[np.float32]:
        """Where Square gets to, inside the ball, `(n, C, H, W)`."""
        attack = self.attack
        common: dict[str, Any] = {name: getattr(attack, name) for name in ("norm", "eps", "seed", "batch_size")}
        square = Square(attack.estimator, queries=queries, rescale=False, **common)
        square.draws, square.victim = attack.draws, attack.victim
        points = square.search(self.x[rows], self.y[rows], self.index[rows]).cpu().numpy()
        return into_ball(points, self.images[rows.cpu().numpy()], attack.norm, attack.eps)

    def _runtime(self, images: NDArray[np.float32]) -> Tensor:
        """The deployed runtime's logits, `(n, K)`."""
        logits = self.attack.estimator.predict(images, batch_size=self.attack.batch_size)
        return torch.from_numpy(np.asarray(logits)).to(self.x.device)

    def _held(self, images: NDArray[np.float32], rows: Tensor) -> Tensor:
        """Where the deployed runtime gets these points of the images `rows` right, bool `(n,)`."""
        return ~wrong(self._runtime(images), self.y[rows])

    def _lead(self, images: NDArray[np.float32], rows: Tensor) -> Tensor:
        """The label's lead there, by the deployed runtime, `(n,)`."""
        return margin(self._runtime(images), self.y[rows])
