"""The default dataset: scikit-learn's handwritten digits, 1,797 grey images of 8x8 pixels."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.cache import Content, content_sha256
from dgad_tk.data.images.request import Request
from dgad_tk.data.spec import Decoded, Labels, Part, Pixels
from dgad_tk.data.splits import stratified_order

TEST_IMAGES = 360


def load(data_dir: Path | None, request: Request) -> Decoded:
    """The digits that come with scikit-learn. A fixed fifth is the test part; UserError where a folder was given."""
    if data_dir is not None:
        raise UserError(
            "dataset 'digits' comes with scikit-learn and takes no --data-dir",
            hint="did you mean --dataset imagefolder?",
        )
    images, labels = _pictures()
    order = stratified_order(labels, "digits test")
    rows = {"train": np.sort(order[TEST_IMAGES:]), "test": np.sort(order[:TEST_IMAGES])}
    parts = {part: Part(images[index], labels[index]) for part, index in rows.items()}
    classes = [str(label) for label in range(10)]
    contents = {
        name: Content(part.images.shape, hashlib.sha256(part.images.tobytes()).hexdigest(), part.labels)
        for name, part in parts.items()
    }
    return Decoded(classes, parts, content_sha256(classes, contents))


@cache
def _pictures() -> tuple[Pixels, Labels]:
    """All of them in scikit-learn's order. Its file is text, and a run asks for it several times."""
    from sklearn.datasets import load_digits  # half a second, for this dataset only

    grey, digit = load_digits(return_X_y=True)
    # Values 0 to 16 become 0 to 255.
    return np.round(grey * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8), digit.astype(np.int64)
