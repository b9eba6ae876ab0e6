"""The table of datasets, and `load_dataset`. Imports no torch, since the command line lists the names."""

import os
from functools import partial
from pathlib import Path

from dgad_tk.common import UserError, lookup
from dgad_tk.data.download import downloads
from dgad_tk.data.images.request import RGB, request_of
from dgad_tk.data.images.resize import SQUEEZE
from dgad_tk.data.images.size import Size, written
from dgad_tk.data.reading import NotThereError
from dgad_tk.data.sources import cifar, digits, fashion_mnist, imagefolder, svhn, tiny_imagenet
from dgad_tk.data.spec import Augmentation, Dataset, DatasetSpec, Split
from dgad_tk.data.splits import make_splits, shares_images
from dgad_tk.strangers.names import check_utf8, is_utf8

__all__ = ["DATASETS", "Augmentation", "Dataset", "DatasetSpec", "Split", "load_dataset"]

DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(
        description="scikit-learn's handwritten digits, 1x8x8, 1,797 images; comes with the installation",
        load=digits.load,
        augmentation=Augmentation(padding=1, flip=False),
        # L2: the nearest image of another class is at least 2 * 0.59 away, so that no two balls meet.
        eps={"linf": 0.15, "l2": 0.5},
        # Twenty short epochs are too few for TRADES at its usual beta of 6: the teacher would not have fitted yet.
        training={
            "epochs": 25,
            "batch_size": 64,
            "schedule": "cosine",
            "lr": 0.2,
            "teacher_epochs": 20,
            "teacher_lr": 0.1,
            "teacher_options": {"beta": 2.0},
        },
    ),
    "fashion-mnist": DatasetSpec(
        description="Fashion-MNIST, 1x28x28, 60,000 + 10,000 images; --data-dir, --download or Debian's package",
        load=fashion_mnist.load,
        augmentation=Augmentation(padding=2, flip=True),
        # L2: among the first 5,000 test images, the nearest of another class is 2 * 1.0 away.
        eps={"linf": 0.1, "l2": 1.0},
        training={"epochs": 40, "schedule": "cosine"},
        fetch=fashion_mnist.fetch,
    ),
    "cifar10": DatasetSpec(
        description="CIFAR-10, 3x32x32, 50,000 + 10,000 images; --data-dir or --download",
        load=partial(cifar.load, cifar.CIFAR10),
        fetch=partial(cifar.fetch, cifar.CIFAR10),
    ),
    "cifar100": DatasetSpec(
        description="CIFAR-100, its 100 fine classes, 3x32x32, 50,000 + 10,000 images; --data-dir or --download",
        load=partial(cifar.load, cifar.CIFAR100),
        fetch=partial(cifar.fetch, cifar.CIFAR100),
    ),
    "svhn": DatasetSpec(
        description="SVHN's cropped digits, 3x32x32, 73,257 + 26,032 images; --data-dir or --download",
        load=svhn.load,
        augmentation=Augmentation(padding=4, flip=False),  # a mirrored digit may be another digit
        fetch=svhn.fetch,
    ),
    "tiny-imagenet": DatasetSpec(
        description="Tiny ImageNet, 200 classes, 3x64x64, 100,000 + 10,000 images (its val/); --data-dir",
        load=tiny_imagenet.load,
        fetch=tiny_imagenet.fetch,
    ),
    "imagefolder": DatasetSpec(
        description="your own images: train/CLASS/* and test/CLASS/* in --data-dir, as RGB or grey of --image-size",
        load=imagefolder.load,
        image_size=32,
    ),
}

SOME_SIZE = 32
"""In a request to a dataset of one size, which takes no notice of it."""


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    image_size: int | str | Size | None = None,
    download: bool = False,
    resize: str | None = None,
    channels: int | None = None,
    only: str | None = None,
    least: int = 2,
) -> Dataset:
    """The dataset `name` with its fixed splits; decoded and cached at the first call, then memory-mapped.

    Args:
        name: row of DATASETS.
        data_dir: folder of the files. The default is where `download` puts them: `downloads/NAME` in the cache.
        image_size: (H, W), `HxW`, or one number for a square, for a dataset that has no size of its own.
        download: fetch the files if they are not there. Otherwise nothing is ever fetched.
        resize: row of RESIZES, for such a dataset.
        channels: 1 to read it as grey, 3 as RGB, which is the default.
        only: the one split that has to be there: "test" for an attack. None if there is to be training.
        least: class folders that have to be there: 1 where the other classes are named afterwards, by `in_order`.

    Raises:
        UserError: unknown name, an option that does not apply, data that are missing or damaged, a folder or a class
            with a name that is not UTF-8, or no network.
    """
    spec = lookup(DATASETS, name, "dataset")
    if not spec.image_size:
        for flag, value in (("--image-size", image_size), ("--resize", resize), ("channels", channels)):
            if value is not None:
                what = "number of channels" if flag == "channels" else "size"
                raise UserError(
                    f"dataset '{name}' has images of one {what} and takes no {flag}",
                    hint="only imagefolder resizes; leave the option out",
                )
    size = (spec.image_size or SOME_SIZE) if image_size is None else image_size
    request = request_of(size, resize, channels, only, least)
    if download and spec.fetch is None:
        raise UserError(f"dataset '{name}' takes no --download", hint="there is nothing to fetch; leave it out")
    folder = data_dir and Path(os.path.expanduser(data_dir))
    options: dict[str, str | int] = {}
    if folder is not None:
        real = str(folder.resolve())
        options["data_dir"] = real if is_utf8(real) else os.path.abspath(folder)  # a link's own name may be UTF-8
        check_utf8(str(options["data_dir"]), "the path of the images")
    try:
        decoded = spec.load(folder, request)
    except NotThereError as error:
        if download and spec.fetch is not None:
            spec.fetch(folder or downloads(name))
            decoded = spec.load(folder, request)
        elif folder is not None and not os.path.isdir(folder):
            raise UserError(f"--data-dir {folder} is not a folder", hint=error.hint) from None
        else:
            raise
    if spec.image_size:
        options["image_size"] = written(request.size)
        options |= {"resize": request.resize} if request.resize != SQUEEZE else {}
        options |= {"channels": request.channels} if request.channels != RGB else {}
    train, val, test = make_splits(decoded.parts)
    notes = decoded.notes
    if only in (None, "val") and shares_images(train, val):
        notes += (
            f"{name}: no class has an image to spare, so validation is on {len(val)} of the {len(train)} training "
            "images, and its accuracy is none of held-out images",
        )
    return Dataset(spec, name, decoded.classes, train, val, test, options, decoded.sha256, notes, decoded.stretch)
