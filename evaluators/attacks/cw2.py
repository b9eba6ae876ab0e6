"""Carlini & Wagner's L2 attack. Every image has a search of its own, and the batch stays full."""

import math
from dataclasses import dataclass, fields

import torch
from art.estimators.classification.classifier import ClassifierMixin
from torch import Tensor

from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.losses import margin, runner_up
from evaluators.attacks.arguments import at_least
from evaluators.attacks.native import NativeAttack, images_of_rows, pixel_rows

BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
EDGE = 0.999
"""In tanh space, where black and white are -1 and 1, a search starts within this bound. Nearer to black or white tanh
saturates, and a pixel would hardly move for hundreds of iterations. It starts up to 5e-4 from its clean value."""
PROGRESS = 0.9999
"""A search step ends early if the loss has not fallen below this share of its value at the last check."""
CHECKS, LEAST_INTERVAL = 10, 50
"""Checks in a search step, and the fewest iterations between two checks. Adam's first steps overshoot; a loss that
needs some iterations to fall after that is not stuck."""


@dataclass
class _Runs:
    """The state of all searches, one row per image. Pixels are flat, channels last."""

    row: Tensor  # (B,) place among the images given
    x: Tensor  # (B, D)
    y: Tensor  # (B,)
    const: Tensor  # (B,) c of the paper, between `lower`, which failed, and `upper`, which found
    lower: Tensor
    upper: Tensor
    step: Tensor  # (B,) search steps that have ended
    best: Tensor  # (B, D) nearest adversarial image so far, the clean one before there is any
    distance: Tensor  # (B,) its squared distance, or inf
    # What follows begins anew with each search step.
    w: Tensor  # (B, D) where Adam is, in tanh space
    mean: Tensor  # (B, D) Adam's moments
    square: Tensor
    age: Tensor  # (B,) iterations
    found: Tensor  # (B,) bool, an adversarial image at this c
    lowest: Tensor  # (B,) loss
    checked: Tensor  # (B,) `lowest` at the last check, the first loss before there is one

    @classmethod
    def begin(cls, row: Tensor, x: Tensor, y: Tensor, const: float) -> "_Runs":
        zero, none = torch.zeros_like(x), torch.zeros_like(y, dtype=x.dtype)
        inf = torch.full_like(none, torch.inf)
        return cls(
            row=row,
            x=x,
            y=y,
            const=none + const,
            lower=none,
            upper=inf,
            step=torch.zeros_like(y),
            best=x.clone(),
            distance=inf.clone(),
            w=_tanh_space(x),
            mean=zero,
            square=zero.clone(),
            age=torch.zeros_like(y),
            found=torch.zeros_like(y, dtype=torch.bool),
            lowest=inf.clone(),
            checked=inf.clone(),
        )

    def pick(self, where: Tensor) -> "_Runs":
        return _Runs(**{each.name: getattr(self, each.name)[where] for each in fields(self)})

    def join(self, other: "_Runs") -> "_Runs":
        pairs = {each.name: (getattr(self, each.name), getattr(other, each.name)) for each in fields(self)}
        return _Runs(**{name: torch.cat(pair) for name, pair in pairs.items()})


class CarliniWagnerL2(NativeAttack):
    """The L2 attack of Carlini & Wagner (S&P 2017, https://arxiv.org/abs/1608.04644, section V), unbounded.

    Minimises ‖x' - x‖² + c f(x') by Adam over w, with x' = (tanh(w) + 1) / 2 and, of the logits Z,
    f(x') = max(Z_y - max_{i≠y} Z_i + confidence, 0). It looks for the smallest c that succeeds: from `initial_const`,
    times ten as long as none did, then by bisection. The result is the nearest image of all iterations with f = 0 and a
    wrong prediction, just as the network saw it. An image whose search fails comes back as it was.

    Where it departs from the authors' code: c, Adam's state and the early abort belong to an image, not to a batch, so
    each image begins and ends its search steps at its own time. The early abort looks at the lowest loss so far, since
    the loss of one image jumps to and fro about the decision boundary. Pixels start at least 5e-4 away from black and
    white, where they could hardly move. An image with logits that are not finite is adversarial.

    Args:
        initial_const: first c.
        binary_search_steps: values of c tried.
        max_iter: Adam's iterations for each c.
        learning_rate: Adam's, in tanh space.
        confidence: least lead of the wrong class, in units of the logits (κ in the paper).
        abort_early: end a search step when a tenth of `max_iter` has brought no progress.
        targeted: `y` holds the classes to reach.
        batch_size: searches at a time.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        initial_const: float = 0.1,
        binary_search_steps: int = 9,
        max_iter: int = 1000,
        learning_rate: float = 0.01,
        confidence: float = 0.01,
        abort_early: bool = True,
        targeted: bool = False,
        batch_size: int = 128,
    ) -> None:
        super().__init__(estimator, norm="l2", eps=0.0, batch_size=batch_size)
        self.initial_const, self.binary_search_steps, self.max_iter = initial_const, binary_search_steps, max_iter
        self.learning_rate, self.confidence = learning_rate, confidence
        self.abort_early, self._targeted = abort_early, targeted
        at_least(1, binary_search_steps=binary_search_steps, max_iter=max_iter)
        at_least(0, confidence=confidence)
        for name in ("initial_const", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}")
        self.interval = max(-(-max_iter // CHECKS), LEAST_INTERVAL) if abort_early else max_iter

    @torch.no_grad()
    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        shape = x.shape[1:]
        pixels = pixel_rows(x)
        result = pixels.clone()
        rows, begun = torch.arange(len(x), device=x.device), 0
        runs = _Runs.begin(rows[:0], pixels[:0], y[:0], self.initial_const)
        while begun < len(x) or len(runs.row):
            fresh = slice(begun, begun + self.batch_size - len(runs.row))
            runs = runs.join(_Runs.begin(rows[fresh], pixels[fresh], y[fresh], self.initial_const))
            begun = min(fresh.stop, len(x))
            ages = runs.age.tolist()
            for _ in range(min(min(self.interval - age % self.interval, self.max_iter - age) for age in ages)):
                self._iterate(runs, shape)
            self._settle(runs)
            over = runs.step == self.binary_search_steps
            result[runs.row[over]] = runs.best[over]
            runs = runs.pick(~over)
        return images_of_rows(result, shape)

    def _iterate(self, runs: _Runs, shape: tuple[int, ...]) -> None:
        tanh = runs.w.tanh()
        x_adv = (tanh * 0.5).add_(0.5)
        with torch.enable_grad():
            logits = self.victim.logits(images_of_rows(x_adv.requires_grad_(), shape))
        answers = logits.detach()
        adversarial, f, push = self._criterion(answers, runs.y)
        push *= torch.where(adversarial, 0, runs.const)[:, None]
        (gradient,) = torch.autograd.grad(logits, x_adv, push)
        x_adv = x_adv.detach()

        gradient = finite(gradient)
        gap = x_adv - runs.x
        distance = torch.linalg.vecdot(gap, gap)
        nearer = adversarial & (distance < runs.distance)
        runs.found |= adversarial
        runs.distance = torch.where(nearer, distance, runs.distance)
        torch.where(nearer[:, None], x_adv, runs.best, out=runs.best)
        loss = distance + runs.const * f
        runs.lowest = torch.fmin(runs.lowest, loss)
        runs.checked = torch.where(runs.age == 0, loss, runs.checked)

        # d(loss)/dw = (2 (x' - x) + c df/dx') dx'/dw, dx'/dw = (1 - tanh²(w)) / 2
        slope = torch.addcmul(tanh.new_tensor(0.5), tanh, tanh, value=-0.5)
        gradient = gradient.add(gap, alpha=2).mul_(slope)
        self._adam(runs, gradient)

    def _adam(self, runs: _Runs, gradient: Tensor) -> None:
        """Algorithm 1 of Kingma & Ba (2015) with the bias corrections in the step size, one per image."""
        first, second = BETAS
        runs.age += 1
        runs.mean.lerp_(gradient, 1 - first)
        runs.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = torch.sqrt(1 - second**runs.age)[:, None]
        size = self.learning_rate * root / (1 - first**runs.age)[:, None]
        scaled = runs.mean / runs.square.sqrt().add_(ADAM_EPS * root)
        runs.w.addcmul_(scaled, size, value=-1)

    def _criterion(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which images are adversarial, bool `(N,)`; f `(N,)`; and df/dZ where f > 0, `(N, K)`."""
        sign = -1.0 if self.targeted else 1.0
        f = sign * margin(logits, y) + self.confidence
        wrong = (logits.argmax(dim=1) == y) == self.targeted
        adversarial = (f <= 0) & wrong | ~torch.isfinite(logits).all(dim=1)
        push = torch.zeros_like(logits).scatter_(1, y[:, None], sign)
        push.scatter_(1, runner_up(logits, y)[:, None], -sign)
        return adversarial, f.clamp(min=0), push

    def _settle(self, runs: _Runs) -> None:
        """End the search steps that are over, choose their next c, and begin the next step there."""
        over = runs.age >= self.max_iter
        if self.abort_early:
            due = runs.age % self.interval == 0
            over |= due & (runs.lowest > PROGRESS * runs.checked)
            runs.checked = torch.where(due, runs.lowest, runs.checked)
        runs.upper = torch.where(over & runs.found, runs.const, runs.upper)
        runs.lower = torch.where(over & ~runs.found, runs.const, runs.lower)
        following = torch.where(runs.upper.isinf(), 10 * runs.const, (runs.lower + runs.upper) / 2)
        runs.const = torch.where(over, following, runs.const)
        runs.step += over
        runs.w[over] = _tanh_space(runs.x[over])
        for state in (runs.mean, runs.square, runs.age, runs.found):
            state[over] = 0
        runs.lowest[over] = torch.inf


def _tanh_space(x: Tensor) -> Tensor:
    return torch.atanh((2 * x - 1).clamp(-EDGE, EDGE))
