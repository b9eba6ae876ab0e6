"""A model file and an image folder each know part of the shape of an image; here each is asked for its part.

The file is opened first: an image folder is read as the file takes its images, and nothing is decoded in vain.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.flags.images import ImageFlags
from cli.printing.terminal import aside
from dgad_tk.common import UserError, lookup

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import OpenShapeError, Predictor
    from dgad_tk.artifacts.preprocessing import Interface
    from dgad_tk.data import Dataset
    from dgad_tk.data.images.size import Size
    from exporters.onnx_open.open import NoGradients

THEY_SAY = "as its metadata say"
SAY_SIZE = "say the size of its images: --image-size 224, or height x width: --image-size 48x192"


@dataclass(frozen=True)
class Opened:
    """A model file that was opened for the images that the flags name.

    Attributes:
        images: those of a dataset of one size; None for an image folder, and where the flags name none.
        obstacle: why there are no gradients; None where there are.
        notes: how the file had its way with the shape of the images, one sentence each.
    """

    predictor: "Predictor"
    images: "Dataset | None" = None
    obstacle: "NoGradients | None" = None
    notes: tuple[str, ...] = ()


@aside
def open_file(
    path: Path,
    flags: ImageFlags,
    interface: "Interface | None" = None,
    *,
    trust: bool = False,
    only: str | None = None,
    twin: bool = True,
) -> Opened:
    """Open a file for the images that the flags name, without decoding an image folder.

    Args:
        trust: open a file that is a program (.pt, .pt2).
        only: the one split that has to be there.
        twin: False for who only asks for answers, so that no twin is made.

    Raises:
        UserError: it cannot be opened, or does not take such images.
    """
    from dgad_tk.artifacts.preprocessing import AS_IS
    from exporters.onnx_open.logits_output import SeveralOutputs

    interface = interface or AS_IS
    try:
        return _open(path, flags, interface, trust, only, twin)
    except SeveralOutputs as error:
        classes = _count_classes(flags, only)
        fitting = [name for name, width in error.widths.items() if width == classes]
        if len(fitting) != 1:
            raise
        found = _open(path, flags, replace(interface, logits_output=fitting[0]), trust, only, twin)
        told = f"'{fitting[0]}' alone of the outputs that may be the logits gives {classes} numbers, one per class"
        return replace(found, notes=(f"{told}; --logits-output takes another", *found.notes))


def _open(path: Path, flags: ImageFlags, interface: "Interface", trust: bool, only: str | None, twin: bool) -> Opened:
    from dgad_tk.artifacts.predictor import OpenShapeError
    from dgad_tk.data import DATASETS
    from dgad_tk.data.images.size import shown
    from exporters.formats import read_record

    if flags.dataset is None and flags.image_size is None:
        try:
            return _load(path, None, interface, trust, twin)
        except OpenShapeError as error:
            if (usual := _usual(error)) is None:
                raise
            size, why = usual
            note = f"its images are taken to be {shown(size)}, {why}"
            return replace(_with_size(path, size, error, interface, trust, twin), notes=(note,))
    record = read_record(path)
    if flags.dataset is None:  # --image-size alone says the shape that a file of no record leaves open
        if record is not None:
            return _load(path, None, interface, trust, twin)
        return replace(_for_folder(path, flags, interface, trust, twin, own=False), notes=())
    if not lookup(DATASETS, flags.dataset, "dataset").image_size:
        images = flags.load(record, only=only)
        return replace(_load(path, images.shape, interface, trust, twin), images=images)
    return _for_folder(path, flags, interface, trust, twin, own=record is not None and record.dataset == flags.dataset)


def images_for(found: Opened, flags: ImageFlags, only: str | None = None) -> "Dataset":
    """The images of a file that was opened; an image folder is read in the shape that the file takes.

    Raises:
        UserError: neither the flags nor the file name any, they cannot be loaded, or the file takes no such images.
    """
    from dgad_tk.data import DATASETS

    record, path = found.predictor.artifact, found.predictor.path
    name = flags.dataset or (record.dataset if record else "")
    if found.images is not None:
        return found.images
    if name not in DATASETS or not DATASETS[name].image_size:
        return flags.load(record, only=only)
    check_folder_shape(str(path), found.predictor.input_shape, flags)
    return flags.load(record, found.predictor.input_shape, only, found.predictor.names)


def check_folder_shape(where: str, shape: tuple[int | None, int | None, int | None], flags: ImageFlags) -> None:
    """See that an image folder can be read in the shape (C, H, W) that a file takes, None for what it leaves open.

    Raises:
        UserError: it takes neither one channel nor three, or another size than --image-size says.
    """
    from dgad_tk.data.images.request import MODES
    from dgad_tk.data.images.size import LARGEST, SMALLEST, written

    if shape[0] not in (None, *MODES):
        raise UserError(
            f"'{where}' takes images of {shape[0]} channels, and an image folder is read as grey (1) or as RGB (3)",
            hint="a folder has no pictures for it; in Python, `evaluate` takes a Split of arrays of any channels",
        )
    for side in shape[1:]:
        if side is not None and not SMALLEST <= side <= LARGEST:
            raise UserError(
                f"'{where}' takes images of {shape} (C, H, W), and a folder's have sides of {SMALLEST} to {LARGEST}",
                hint="if it takes flat images, say their size: --image-size 28",
            )
    size = flags.size
    if size is not None and any(own not in (None, given) for own, given in zip(shape[1:], size, strict=True)):
        own = "x".join("any" if side is None else str(side) for side in shape[1:])
        raise UserError(
            f"'{where}' takes images of {own} (height x width), and --image-size says {written(size)}",
            hint="leave --image-size out: the file says the size",
        )


def _load(path: Path, shape: "tuple[int, int, int] | None", interface: "Interface", trust: bool, twin: bool) -> Opened:
    from exporters.formats import load
    from exporters.onnx_open.open import NoGradients

    try:
        return Opened(load(path, shape, interface, trust=trust, gradients=twin))
    except NoGradients as error:
        return Opened(error.predictor, obstacle=error)


def _for_folder(path: Path, flags: ImageFlags, interface: "Interface", trust: bool, twin: bool, *, own: bool) -> Opened:
    """Open a file for an image folder.

    Args:
        own: the folder is the one that the file was trained on, so that nothing about its shape is news.
    """
    from dgad_tk.artifacts.predictor import OpenShapeError
    from dgad_tk.data.images.size import SMALLEST, shown

    says = "as the file says"
    try:
        found = _load(path, None, interface, trust, twin)
        shape = found.predictor.input_shape
        if found.predictor.artifact is None and min(shape[1:]) < SMALLEST:  # flat images with axes of size 1
            raise OpenShapeError("", values=math.prod(shape))
        check_folder_shape(str(path), shape, flags)
    except OpenShapeError as error:
        found = _with_size(path, _size(path, error, flags), error, interface, trust, twin)
        shape = found.predictor.input_shape
        usual = _usual(error) if None in error.declared[1:] else None
        says = usual[1] if usual else says
    if own:
        return found
    notes = []
    if flags.image_size is None:
        notes.append(f"the image folder is read at {shown(shape[1:])} (height x width), {says}")
    if shape[0] == 1:
        notes.append("the image folder is read as one channel (grey), since the file takes one")
    return replace(found, notes=tuple(notes))


def _size(path: Path, unknown: "OpenShapeError", flags: ImageFlags) -> "Size":
    """(H, W) of the images for a file that leaves something open."""
    from dgad_tk.data.images.size import SMALLEST

    channels, height, width = unknown.declared
    if unknown.values is not None and min(height or SMALLEST, width or SMALLEST) < SMALLEST:
        height = width = None  # flat images, with an axis of size 1
    check_folder_shape(str(path), (channels, height, width), flags)
    if flags.size is not None:
        return flags.size
    if height is not None and width is not None:
        return height, width
    if usual := _usual(unknown):
        return usual[0]
    message = unknown.message
    if unknown.values is not None:
        message = f"'{path}' takes flat images of {unknown.values:,} numbers, and does not say their height and width"
    raise UserError(message, hint=SAY_SIZE)


def _usual(unknown: "OpenShapeError") -> "tuple[Size, str] | None":
    """(H, W) that a file's metadata give, or of the square that its flat images are; and a clause that says which.

    What contradicts the rest of the file is none. No number is both a square and three of them.
    """
    from dgad_tk.data.images.request import MODES
    from dgad_tk.data.images.size import SMALLEST

    size, declared = unknown.usual, unknown.declared[1:]
    if size is not None and all(side in (None, own) for side, own in zip(declared, size, strict=True)):
        return size, THEY_SAY
    values = unknown.values or 0
    for channels in MODES:
        side = math.isqrt(values // channels)
        if channels * side**2 == values and side >= SMALLEST:
            return (side, side), f"the square of {values:,} numbers; --image-size says another shape"
    return None


def _count_classes(flags: ImageFlags, only: str | None) -> int:
    """How many classes the flags name, with --classes or by their images; 0 if they name none."""
    from dgad_tk.data import DATASETS
    from dgad_tk.data.labels.class_lists import read_classes
    from dgad_tk.data.sources.imagefolder import class_names

    if flags.classes is not None:
        return len(read_classes(flags.classes)[0])
    if flags.dataset is None:
        return 0
    folder = DATASETS[flags.dataset].image_size > 0
    return len(class_names(flags.data_dir, only) if folder else flags.load(None, only=only).classes)


def _with_size(
    path: Path, size: "Size", unknown: "OpenShapeError", interface: "Interface", trust: bool, twin: bool
) -> Opened:
    """Open a file for images of this size; as many channels as it says, else those with which it runs, RGB first."""
    from dgad_tk.data.images.request import GREY, RGB

    channels = unknown.declared[0]
    if channels is None and unknown.values in (GREY * math.prod(size), RGB * math.prod(size)):
        channels = unknown.values // math.prod(size)
    failed: UserError | None = None
    for number in (RGB, GREY) if channels is None else (channels,):
        try:
            return _load(path, (number, *size), interface, trust, twin)
        except UserError as error:
            failed = failed or error
    assert failed is not None
    raise failed
