"""The embedded default: scikit-learn's handwritten digits, 1,797 grey images of 8x8 pixels."""

import hashlib
from pathlib import Path

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.cache import Content, content_sha256
from dgad_tk.data.spec import Decoded, Labels, Part, Pixels
from dgad_tk.data.splits import stratified_order

TEST_IMAGES = 360


def load(data_dir: Path | None, image_size: int | None) -> Decoded:
    """The digits that come with scikit-learn. They have no split of their own; a fixed fifth is the test.

    Raises:
        UserError: a folder was given; there is nothing to read from it.
    """
    if data_dir is not None:
        raise UserError(
            "dataset 'digits' comes with scikit-learn and takes no --data-dir",
            hint="did you mean --dataset imagefolder?",
        )
    from sklearn.datasets import load_digits  # half a second, for this dataset only

    grey, digit = load_digits(return_X_y=True)
    # Inks 0 to 16 become 0 to 255.
    images: Pixels = np.round(grey * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels: Labels = digit.astype(np.int64)
    order = stratified_order(labels, "digits test")
    rows = {"train": np.sort(order[TEST_IMAGES:]), "test": np.sort(order[:TEST_IMAGES])}
    parts = {part: Part(images[index], labels[index]) for part, index in rows.items()}
    classes = [str(label) for label in range(10)]
    return Decoded(classes, parts, content_sha256(classes, {part: _content(parts[part]) for part in parts}))


def _content(part: Part) -> Content:
    return Content(part.images.shape, hashlib.sha256(part.images.tobytes()).hexdigest(), part.labels)
