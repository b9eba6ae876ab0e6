"""The preprocessings of the field. A new one is a row; `dgad inspect` tries it, and `dgad list preprocessings` has it.

Only what gives a file other numbers is a row of its own: ImageNet's mean and std on pixels from 0 to 255 is the row
ImageNet, whose numbers are the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dgad_tk.artifacts.preprocessing import AS_IS, UNIT_RANGE, ChannelOrder, Interface

COLOURS = 3


@dataclass(frozen=True)
class Preprocessing:
    """A row of the table.

    Attributes:
        interface: what is done to images, in the channel order that is usual with it.
        summary: who uses it, in a sentence.
        channels: of the images that it is for; 0 for any number that its means fit.
    """

    interface: Interface
    summary: str
    channels: int = 0


PREPROCESSINGS: Mapping[str, Preprocessing] = {
    "as is": Preprocessing(AS_IS, "Pixels from 0 to 1: the normalisation is in the file, or there was none."),
    "ImageNet": Preprocessing(
        Interface(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        "Mean and std of ImageNet: torchvision, most of timm.",
    ),
    "CIFAR-10": Preprocessing(
        Interface(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)), "Mean and std of CIFAR-10's pixels."
    ),
    "CIFAR-10, std of images": Preprocessing(
        Interface(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.201)),
        "Mean of CIFAR-10 and the mean std of its images, which many training scripts have.",
    ),
    "range -1 to 1": Preprocessing(
        Interface(input_range=(-1.0, 1.0)), "Mean and std 0.5: Inception, MobileNet and most of TensorFlow."
    ),
    "range 0 to 255": Preprocessing(
        Interface(input_range=(0.0, 255.0)), "Grey levels: EfficientNet of Keras, files that normalise by themselves."
    ),
    "Caffe": Preprocessing(
        Interface(input_range=(0.0, 255.0), mean=(103.939, 116.779, 123.68), channel_order="bgr"),
        "Grey levels less ImageNet's mean, blue first: Caffe, VGG and ResNet of Keras.",
    ),
    "range -0.5 to 0.5": Preprocessing(Interface(mean=(0.5,)), "Pixels from 0 to 1 less one half."),
    "MNIST": Preprocessing(Interface(mean=(0.1307,), std=(0.3081,)), "Mean and std of MNIST's pixels.", channels=1),
}


@dataclass(frozen=True)
class Candidate:
    """A preprocessing to try: a row, in one of the two channel orders where images have colours."""

    name: str
    interface: Interface


AS_THEY_ARE = [Candidate("as is", AS_IS)]
"""For a file that is known to normalise images itself."""


def candidates(channels: int) -> list[Candidate]:
    """What can be tried on images of so many channels, what changes them least first: it is preferred among equals."""
    usual = [Candidate(name, row.interface) for name, row in PREPROCESSINGS.items() if _fits(row, channels)]
    others = [Candidate(each.name, exchanged(each.interface)) for each in usual] if channels == COLOURS else []
    return sorted([*usual, *others], key=lambda each: _changes(each.interface))


def exchanged(interface: Interface) -> Interface:
    """The same for each colour, with the channels in the other order."""
    other: ChannelOrder = "rgb" if interface.channel_order == "bgr" else "bgr"
    return replace(interface, channel_order=other, mean=interface.mean[::-1], std=interface.std[::-1])


def _fits(row: Preprocessing, channels: int) -> bool:
    return row.channels in (0, channels) and set(_counts(row.interface)) <= {1, channels}


def _counts(interface: Interface) -> Iterator[int]:
    """How many channels the means and the stds are for."""
    return (len(values) for values in (interface.mean, interface.std) if values)


def _changes(interface: Interface) -> int:
    """In how many ways images are changed."""
    ranged, turned = interface.input_range != UNIT_RANGE, interface.channel_order != "rgb"
    return sum(map(bool, (interface.mean, interface.std, ranged, turned)))
