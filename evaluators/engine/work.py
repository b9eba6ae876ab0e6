"""Units of work. Each is stored under the question that it answers, and made when it is not in the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.record import tool_versions
from dgad_tk.data import Split
from evaluators.engine.search import Candidates, Chunk, search, unit_of
from evaluators.engine.units import Unit, UnitStore
from evaluators.plan.reordered import Reordered
from evaluators.plan.rows import Row
from evaluators.target.judge import images_of


@dataclass(frozen=True)
class Work:
    """What the units of an evaluation have in common.

    Attributes:
        chunks: places of the images of each unit.
        hashes: SHA-256 of each chunk.
        right: bool `(n,)`, clean predictions that are right.
        units, examples: where units and transfer examples are kept.
    """

    predictor: Predictor
    split: Split
    chunks: Sequence[slice]
    hashes: Sequence[str]
    right: NDArray[np.bool_]
    seed: int
    batch_size: int
    units: UnitStore
    examples: UnitStore

    def unit(self, row: Row, number: int, smaller: Unit | None) -> Unit:
        """The outcome of a row on chunk `number`; `smaller` is its outcome at the next smaller radius, if known."""
        search_question = self._question(row, number)
        question = {
            **search_question,
            "model": self.predictor.sha256,
            "interface": self.predictor.interface.to_dict(),
            "runtime": self.predictor.runtime,
            "smaller": list(row.smaller) if smaller is not None else [],
        }
        file, halfway = self.units.file(question), self.units.progress(question)
        if (stored := file.get()) is not None:
            return Unit(**stored)
        chunk = self._chunk(row, number, smaller)
        if row.surrogate is None:
            found = search(self.predictor, row, chunk.only(chunk.todo), halfway=halfway, **self._settings)
        else:
            found = self._made_on(row, chunk, search_question).only(chunk.todo)
        unit = unit_of(self.predictor, row, chunk, found, batch_size=self.batch_size, gallery=number == 0)
        file.put(**vars(unit))
        halfway.forget()
        return unit

    @property
    def _settings(self) -> dict[str, int]:
        return {"seed": self.seed, "batch_size": self.batch_size}

    def _chunk(self, row: Row, number: int, smaller: Unit | None) -> Chunk:
        place = self.chunks[number]
        if row.limit is not None:
            place = slice(place.start, min(place.stop, row.limit))
        images, split = images_of(self.split, place), self.split
        return Chunk(images, split.labels[place], split.index[place], self.right[place], smaller)

    def _made_on(self, row: Row, chunk: Chunk, question: Mapping[str, Any]) -> Candidates:
        """Examples of all images of the chunk, so that they serve every target, whatever it gets right."""
        assert row.surrogate is not None
        source = row.surrogate.predictor
        assert source is not None
        file, halfway = self.examples.file(question), self.units.progress(question)
        if (kept := file.get()) is not None:
            return Candidates(**{**kept, "seconds": 0.0, "forwards": 0, "backwards": 0})
        found = search(source, row, chunk, halfway=halfway, **self._settings)
        halfway.forget()
        file.put(**vars(found))
        return found

    def _question(self, row: Row, number: int) -> dict[str, Any]:
        """Everything that could change what a search finds."""
        surrogate = row.surrogate.predictor if row.surrogate else None
        siblings = (surrogate or self.predictor).siblings if row.spec.siblings else {}
        return {
            **({"siblings": [_identity(name, each) for name, each in siblings.items()]} if siblings else {}),
            "attack": row.attack,
            "params": row.settings,
            "norm": row.norm,
            "eps": row.eps,
            "surrogate": surrogate.sha256 if surrogate else None,
            "surrogate_interface": surrogate.interface.to_dict() if surrogate else None,
            "images": self.hashes[number],
            **self._settings,
            "threads": torch.get_num_threads(),
            "versions": tool_versions(),
            "gpu": torch.cuda.is_available(),
        }


def _identity(name: str, sibling: Predictor) -> list[Any]:
    """What a sibling's logits depend on: its file, how images are changed for it, and the order of its classes."""
    order = sibling.module.columns.tolist() if isinstance(sibling.module, Reordered) else None
    return [name, sibling.sha256, sibling.interface.to_dict(), order]
