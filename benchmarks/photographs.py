"""An image folder of about 200 photographs, cut from the two that scikit-learn ships: for trials at real sizes.

    python benchmarks/photographs.py photographs

makes photographs/train/{china,flower}/*.jpg and photographs/test/{china,flower}/*.jpg. Training images are cut from the
left three fifths of each picture and test images from the rest, so that no pixel is in both. Every file is the same
each time. scikit-learn's pictures are china.jpg and flower.jpg, 427 x 640 pixels (height x width).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

PICTURES = ("china", "flower")
SIDES = 180, 256
"""Least and largest height of a cut in pixels, and width."""
SHARE = 0.6
"""Of a picture's width that training images are cut from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=80, help="training images of each class")
    parser.add_argument("--test", type=int, default=20, help="test images of each class")
    arguments = parser.parse_args()
    count = cut(arguments.folder, arguments.train, arguments.test)
    print(f"{arguments.folder}: {count} images of {len(PICTURES)} classes")


def cut(folder: Path, train: int, test: int) -> int:
    """Write the folder; how many files that are."""
    written = 0
    for number, name in enumerate(PICTURES):
        picture = load_sample_image(f"{name}.jpg")
        border = round(SHARE * picture.shape[1])
        parts = {"train": (train, picture[:, :border]), "test": (test, picture[:, border:])}
        for which, (split, (count, part)) in enumerate(parts.items()):
            draw, place = np.random.default_rng([number, which]), folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for at in range(count):
                height, width = draw.integers(SIDES[0], min(SIDES[1], *part.shape[:2]), 2, endpoint=True)
                top, left = (
                    int(draw.integers(0, whole - own, endpoint=True))
                    for whole, own in ((part.shape[0], height), (part.shape[1], width))
                )
                Image.fromarray(part[top : top + height, left : left + width]).save(place / f"{at:03}.jpg", quality=95)
                written += 1
    return written


if __name__ == "__main__":
    main()
