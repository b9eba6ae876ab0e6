"""Puts the classes of a dataset in the order of a model's outputs."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dgad_tk.common import UserError, nearest
from dgad_tk.data.spec import Dataset, Split
from dgad_tk.strangers.names import check_utf8, composed, shown

LONGEST_LIST = 300
"""Characters of a list of names that a message gives for copying."""


def in_order(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The dataset with the classes `names`, and each label the place of its class among them.

    The images and their order do not change. A name may have no images, such as `background`; a class that has images
    needs a name. Names are compared in Unicode's composed form.

    Args:
        names: of all outputs of a model, in their order.

    Raises:
        UserError: a class of the dataset is not among the names, or as `places_of`.
    """
    places = places_of(names)
    if missing := [name for name in dataset.classes if composed(name) not in places]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"--classes has no '{shown(missing[0])}', a class of {dataset.name}{more}",
            hint=nearest(missing[0], map(shown, names), "it has to name each class that has images"),
        )
    classes = list(places)
    if classes == [composed(name) for name in dataset.classes]:
        return dataset
    order = np.array([places[composed(name)] for name in dataset.classes], dtype=np.int64)

    def moved(split: Split) -> Split:
        return replace(split, labels=order[split.labels])

    # What is trained and kept under this hash, such as surrogates, knows the classes by their numbers.
    question = "\n".join([dataset.sha256, *classes])
    return replace(
        dataset,
        classes=classes,
        train=moved(dataset.train),
        val=moved(dataset.val),
        test=moved(dataset.test),
        sha256=hashlib.sha256(question.encode()).hexdigest(),
    )


def places_of(names: Sequence[str]) -> dict[str, int]:
    """The place of each name, in Unicode's composed form.

    Raises:
        UserError: a name comes twice, is empty, is not UTF-8 or has control characters, or there are fewer than two.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(map(composed, names)):
        check_utf8(name, f"name {place} of --classes", hint="write the list in UTF-8")
        if not name:
            raise UserError(
                f"--classes has an empty name, the one of output {place}", hint="each output needs a name of its own"
            )
        if shown(name) != name:
            raise UserError(
                f"--classes has control characters in '{shown(name)}', the name of output {place}",
                hint="take them out: names of classes are printed and written into reports",
            )
        if name in places:
            raise UserError(
                f"--classes names '{shown(name)}' twice, as outputs {places[name]} and {place}",
                hint="each output needs a name of its own",
            )
        places[name] = place
    if len(places) < 2:
        raise UserError(
            f"--classes needs at least two names, got {shown(' '.join(places)) or 'none'}",
            hint="for example --classes cat,dog, or a file with a name a line",
        )
    return places


def counted(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names by the numbers in them: `class_2` before `class_10`."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", name)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts]


def sorted_as_text(names: Sequence[str]) -> str:
    """A sentence where a model that counts the numbers in the names has them in another order; else empty.

    Args:
        names: in the order of the labels.
    """
    by_number = sorted(names, key=counted)
    if by_number == list(names):
        return ""
    name = next(here for here, there in zip(names, by_number, strict=True) if here != there)
    told = (
        f"the classes are sorted as text, so that '{name}' is label {list(names).index(name)}, and by the numbers in "
        f"the names it is {by_number.index(name)}"
    )
    return f"{told}: if the file's outputs are in the order of the numbers, give {as_flag(by_number)}"


def as_flag(names: Sequence[str]) -> str:
    """`--classes` with this list to copy, or with a file where the list is long or a name has a comma in it."""
    text = ",".join(names)
    if len(text) > LONGEST_LIST or any("," in name or name != name.strip() for name in names):
        return "--classes FILE with a name a line, in that order"
    plain = re.fullmatch(r"[\w,.:+@%/-]+", text, re.ASCII) is not None
    quoted = text if plain else "'" + text.replace("'", "'\"'\"'") + "'"
    return f"--classes {quoted}"
