"""AutoAttack and what it lacks: gradients that pass straight through, siblings, and more targets and restarts."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from art.estimators.classification.classifier import ClassifierMixin
from torch import nn

from dgad_tk.config.threat import Norm
from dgad_tk.draws import Draws
from evaluators.attacks.arguments import at_least
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.stages import TARGETS, Stage
from evaluators.attacks.native import NativeAttack, Victim
from evaluators.attacks.strongest.searches import MarginAPGD, PlateauSquare, Together
from evaluators.attacks.strongest.straight import Straight, hidden, rounds
from evaluators.target.estimators import Counted, PredictorBlackBox, PredictorClassifier

_SEED = 0x5EED
"""Is added to the seed for each stage after the standard ones, so that each has starting points of its own."""


@dataclass(frozen=True)
class Climb:
    """A function that a stage climbs on in place of the attacked model's own.

    Attributes:
        module: gives its logits and gradients.
        judged: its values differ from the attacked model's, whose runtime has to be asked.
    """

    module: nn.Module
    judged: bool


class AutoAttackMax(AutoAttack):
    """Standard AutoAttack, then what is known to find more where AutoAttack is wrong.

    After the four standard stages come, each on what is left:

    - if gradients pass functions that have none (roundings, comparisons): APGD-CE and targeted APGD with gradients that
      pass straight through them (`straight`), and on the function without its roundings (`smooth`), INT8 too;
    - for each sibling, a model of the same classes such as the fp32 file of an INT8 one: APGD-CE and targeted APGD on
      the sibling, and targeted APGD on the sum of both models' logits;
    - for INT8 a Square attack that crosses plateaus by another function's margin: the first sibling's, else `smooth`'s;
    - MultiTargeted APGD on differences of logits, with restarts.

    Each asks the attacked model's runtime at every point, and ends when that gets the image wrong.

    Args:
        steps: of each ascent after the standard stages.
        restarts: of MultiTargeted, for each of its nine targets.
        queries: of both Square attacks.
        siblings: modules by name, each from images in [0, 1] to logits of the same classes. None takes those of the
            estimator's predictor.

    Other arguments are those of `NativeAttack`.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        steps: int = 100,
        restarts: int = 3,
        queries: int = 5000,
        siblings: Mapping[str, nn.Module] | None = None,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, queries=queries, seed=seed, batch_size=batch_size)
        at_least(1, steps=steps, restarts=restarts)
        self.steps, self.restarts = steps, restarts
        self.siblings = _of_predictor(estimator) if siblings is None else siblings
        self.climbs = self._climbs()
        self._standard = len(self.stages)
        self.stages = [*self.stages, *self._further()]

    def _climbs(self) -> dict[str, Climb]:
        """What stages climb on, by the words that follow the attack's name in the name of a stage."""
        own = self.victim.module
        assert own is not None
        seen = own.module if isinstance(own, Counted) else own
        names = hidden(seen, tuple(self.estimator.input_shape), self.victim.device)
        if any(isinstance(module, torch.jit.ScriptModule) for module in seen.modules()):
            self._notes.append("a TorchScript program is not seen into: no gradient passes straight through it")
        found = {"straight": Climb(Straight(own), judged=False)} if names else {}
        if self.victim.quantised or rounds(names):
            found["smooth"] = Climb(Straight(own, smooth=True), judged=True)
        base = Straight(own) if names else own
        for name, module in self.siblings.items():
            found[f"on {name}"] = Climb(module, judged=True)
            found[f"with {name}"] = Climb(Together([base, module]), judged=True)
        return found

    def _further(self) -> list[Stage]:
        found = [Stage(f"apgd-ce {words}") for words in self.climbs if not words.startswith("with ")]
        found += [Stage(f"apgd-t {words}", targets=TARGETS) for words in self.climbs]
        if self.victim.quantised and any(stage.name == "square" for stage in self.stages):
            guide = next((words for words in self.climbs if words.startswith("on ")), "smooth")
            found.append(Stage(f"square with {guide.removeprefix('on ')}"))
        return [*found, Stage("multi-targeted", targets=TARGETS, restarts=self.restarts)]

    def _attack(self, stage: Stage) -> NativeAttack:
        number = self.stages.index(stage)
        if number < self._standard:
            return super()._attack(stage)
        common: dict[str, Any] = {name: getattr(self, name) for name in ("norm", "eps", "seed", "batch_size")}
        kind, _, words = stage.name.partition(" ")
        attack: NativeAttack
        if kind == "square":
            guide = words.removeprefix("with ")
            climb = self.climbs.get(f"on {guide}") or self.climbs[guide]
            attack = PlateauSquare(
                self.estimator, guide=self._climbed(climb), queries=self.queries, rescale=False, **common
            )
        else:
            climb = self.climbs.get(words) or self.climbs.get("straight") or Climb(self._module, judged=False)
            attack = MarginAPGD(
                self.estimator,
                climbed=self._climbed(climb),
                judged=climb.judged,
                targets=stage.targets,
                restarts=stage.restarts,
                steps=self.steps,
                **common,
            )
        attack.draws = Draws(self.seed + _SEED * (number + 1 - self._standard))
        return attack

    @property
    def _module(self) -> nn.Module:
        assert self.victim.module is not None
        return self.victim.module

    def _climbed(self, climb: Climb) -> Victim:
        victim = copy.copy(self.victim.exact)  # these stages are the last, and search in float32
        victim.module = climb.module
        return victim


def _of_predictor(estimator: ClassifierMixin) -> dict[str, nn.Module]:
    if not isinstance(estimator, PredictorClassifier | PredictorBlackBox):
        return {}
    return {
        name: sibling.module for name, sibling in estimator.predictor.siblings.items() if sibling.module is not None
    }
