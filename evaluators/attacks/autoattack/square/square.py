"""The Square attack: random search on a model's answers alone."""

import math
from bisect import bisect_left
from typing import ClassVar

import torch
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator
from torch import Tensor

from dgad_tk.ascent.losses import margin
from dgad_tk.common import UserError
from dgad_tk.config.threat import Norm
from evaluators.attacks.arguments import at_least
from evaluators.attacks.autoattack.square.layout import Layout
from evaluators.attacks.autoattack.square.moves import TILES, WALKS, Walk
from evaluators.attacks.native import NativeAttack, wrong

_FIRST_SHARE = 0.8
"""Share of the image that the first square covers."""
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The share of the image that a square covers is halved after so many of 10,000 queries (section 5)."""
_BLOCK = 64
"""Steps whose random numbers are drawn at once. A seed's draws depend on it."""
_PIXELS = 2**21
"""Numbers in the squares that are prepared at once."""
_CPU_BATCH = 128
"""Larger batches cost more per image on a CPU, since their feature maps do not fit into the cache."""
_VALUES = 2**24
"""Numbers in the images that walk at once: a whole chunk of small images, or a part of one."""


class Square(NativeAttack):
    """Random search with squares (Andriushchenko et al., ECCV 2020, https://arxiv.org/abs/1912.00049).

    It asks for predictions only. So gradients that hide weakness by rounding or saturation do not hide it here, and any
    classifier of ART will do. L1 follows Croce & Hein, ICML 2021, https://arxiv.org/abs/2103.01208.

    An image leaves when its prediction is wrong. A proposal that changes no pixel is not asked about, since the answer
    is known. The authors' package differs in two points. It draws one square (in Linf one colour too) for a whole
    batch; here each image has its own, which depends on its index. And it counts a tie with the label as success; here
    the first index of the largest logit decides.

    Args:
        estimator: any classifier of ART, of logits or probabilities.
        queries: proposals per image, after the first point; the paper and AutoAttack use 5,000. The model sees an image
            at most `queries + 1` times.
        accept_equal: accept proposals that leave the loss as it is. Logits with few levels have plateaus, on which a
            search would otherwise stand still. None accepts them for INT8.
        rescale: stretch the schedule of the squares' sizes, made for 10,000 queries, to `queries`. AutoAttack does not.

    Other arguments are those of `NativeAttack`.

    Raises:
        ValueError: a parameter out of range.
        UserError: images with a side of less than 5 pixels in L2 or L1.
    """

    lowers = False
    _estimator_requirements: ClassVar[tuple[type, ...]] = (BaseEstimator, ClassifierMixin)

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        queries: int = 5000,
        accept_equal: bool | None = None,
        rescale: bool = True,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, seed=seed, batch_size=batch_size)
        at_least(0, queries=queries)
        side = min(estimator.input_shape[1:])
        if norm != "linf" and side < TILES:
            raise UserError(
                f"'square' in {norm} needs images of at least {TILES} pixels a side, these have {side}",
                hint="leave it out, or take --norm linf",
            )
        self.queries, self.rescale = queries, rescale
        self.accept_equal = self.victim.quantised if accept_equal is None else accept_equal

    @torch.no_grad()
    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        parts = zip(*(torch.split(each, max(1, _VALUES // x[0].numel())) for each in (x, y, index)), strict=True)
        return torch.cat([self._walk(*part) for part in parts])

    def _walk(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The last points `(N, C, H, W)`."""
        layout = Layout((x.shape[1], x.shape[2], x.shape[3]), channels_last=self.victim.by_module)
        walk = WALKS[self.norm](x, self.eps, layout)
        walk.start(self.draws.uniform("square start", walk.start_shape, index=index))
        images = layout.images(walk.points)
        loss, held = self._read(self._answers(images), images, y)
        points = walk.points.clone()
        who = torch.arange(len(x), device=x.device)

        sides = [self._side(query, walk) for query in range(self.queries)]
        numbers = x.new_empty(0)
        query = 0
        while len(who) and query < self.queries:
            at = query % _BLOCK
            if at == 0:
                shape = (_BLOCK, walk.numbers)
                numbers = self.draws.uniform("square", shape, index=index[who], step=query // _BLOCK)
            steps = _run(sides[query : query + _BLOCK - at], _PIXELS // (walk.copies * len(who) * x.shape[1]))
            walk.prepare(numbers[:, at : at + steps], sides[query])
            for step in range(steps):
                self._step(walk, step, y[who], loss, held)
            query += steps
            if query == self.queries or not held.all():
                points[who] = walk.points
                walk.keep(held)
                who, numbers, loss, held = who[held], numbers[held], loss[held], held[held]
        return self._inside(layout.images(points), x)

    def _step(self, walk: Walk, step: int, y: Tensor, loss: Tensor, held: Tensor) -> None:
        """One proposal for every point that is `held`. Updates `loss` and `held`, both `(N,)`, in place."""
        proposals, moved = walk.propose(step)
        asked = (held if moved is None else held & moved).nonzero()[:, 0]
        accepted = torch.zeros_like(held)
        if len(asked):
            chosen = proposals if len(asked) == len(y) else proposals.index_select(0, asked)
            images = walk.layout.images(chosen)
            margins, right = self._read(self._answers(images), images, y[asked])
            before = loss[asked]
            better = (margins <= before if self.accept_equal else margins < before) | ~right
            accepted[asked], held[asked] = better, right
            loss[asked] = torch.where(better, margins, before)
        walk.settle(accepted)

    def _answers(self, images: Tensor) -> Tensor:
        size = min(self.batch_size, _CPU_BATCH) if images.device.type == "cpu" else self.batch_size
        return torch.cat([self.victim.answers(part) for part in torch.split(images, size)])

    def _read(self, logits: Tensor, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The label's lead in logits, `(N,)`, which is to fall, and where the prediction is right, bool `(N,)`."""
        margins = margin(logits, y)
        held = margins > 0
        if not held.all():
            # In a tie the first index counts; an answer that is not finite is wrong.
            held = ~self.victim.confirmed(wrong(logits, y), images, y)
        return margins, held

    def _side(self, query: int, walk: Walk) -> int:
        """Side of the square of a query, in pixels."""
        of_schedule = int(query / self.queries * 10000) if self.rescale else query
        share = _FIRST_SHARE / 2 ** bisect_left(_HALVINGS, of_schedule)
        height, width = walk.layout.height, walk.layout.width
        side = max(round(math.sqrt(share * height * width)), walk.min_side)
        if walk.odd and side % 2 == 0:
            side += 1
        return min(side, height, width)

    def _inside(self, points: Tensor, x: Tensor) -> Tensor:
        """Points, brought back into an L2 or L1 ball where rounding has moved them out."""
        if self.norm == "linf":
            return points
        delta = (points - x).double()
        length = torch.linalg.vector_norm(delta.flatten(1), ord=2 if self.norm == "l2" else 1, dim=1)[
            :, None, None, None
        ]
        inside = (x + delta * (self.eps * (1 - 1e-6) / length)).float().clamp(0, 1)
        return torch.where(length > self.eps, inside, points)


def _run(sides: list[int], pixels: int) -> int:
    """How many of the next steps to prepare: with squares of one size and at most `pixels` in all, at least one."""
    same = next((at for at, side in enumerate(sides) if side != sides[0]), len(sides))
    return max(1, min(same, pixels // sides[0] ** 2))
