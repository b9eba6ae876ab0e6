"""What `dgad_tk.training.train.train` starts from where `init` names an ONNX file, or a run that began with one."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.runs import weights_of
from dgad_tk.artifacts.weights import GRAPH, read_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.data import Dataset
from dgad_tk.models.own import ONNX
from dgad_tk.teachers.normalisation import FIRST, Values, check_given
from dgad_tk.training.job import Start
from exporters.onnx_student.student import Shape, copies, read_student
from exporters.onnx_student.weights import has_graph, open_weights


def is_graph(source: Path) -> bool:
    """Whether `init` is an ONNX file, or a run folder or weights whose network was made from one."""
    if source.is_dir():
        source = weights_of(source)
    return source.suffix == ".onnx" or has_graph(source)


def start_from_graph(
    source: Path,
    *,
    mean: Values = (),
    std: Values = (),
    say: Callable[[str], None] = lambda line: None,
) -> Callable[[Dataset], Start]:
    """The `start` of `train`, which makes a student of an ONNX file.

    Args:
        source: an ONNX file, or a run folder or weights whose network was made from one.
        mean, std: normalisation of images in [0, 1] that the file expects, one value per channel; empty for none, or
            where it normalises inside.
        say: gets what a user should know, line by line.
    """

    def start(dataset: Dataset) -> Start:
        path = weights_of(source)
        network, shape, classes, graph, record = _opened(path, dataset.shape, say)
        given = mean, std
        if record is not None:
            if mean:
                raise UserError(
                    f"'{path}' says itself how it normalises its images", hint="leave out --init-mean and --init-std"
                )
            if path.suffix != ".onnx":  # in an exported file it is a part of the graph
                given = tuple(record.normalize.get("mean", ())), tuple(record.normalize.get("std", ()))
        if shape != dataset.shape:
            raise UserError(
                f"'{path}' takes images of shape {shape}, '{dataset.name}' has {dataset.shape}",
                hint="a graph takes the images it was made for: --image-size, or --set channels=1",
            )
        check_given(*given, dataset.shape[0], FIRST)
        other = None if classes == len(dataset.classes) else len(dataset.classes)
        build = copies(network, other, f"'{path}'")
        if other is not None:
            build()  # before anything that takes hours
            say(f"note: '{path}' knows {classes} classes, the dataset has {other}: its last layer starts anew")
        elif record is not None and record.classes != dataset.classes:
            say(f"note: '{path}' was made for other classes ({', '.join(record.classes[:5])}, ...): its head is kept")
        digest = sha256_file(path)
        name = record.model if path.suffix != ".onnx" and record is not None else f"{ONNX}:{path.stem}"
        return Start(
            build=build,
            sha256=digest,
            mean=given[0],
            std=given[1],
            said={"init": path.name, "init_sha256": digest},
            network={"name": name, "graph_sha256": hashlib.sha256(graph).hexdigest()},
            graph=graph,
            knows=other is None,
        )

    return start


def _opened(
    path: Path, shape: Shape, say: Callable[[str], None]
) -> tuple[nn.Module, Shape, int, bytes, Artifact | None]:
    """Network without normalisation, (C, H, W), number of classes, graph, and the record if there is one."""
    if path.suffix != ".onnx":
        model, record = open_weights(path)
        graph = bytes(read_weights(path)[0][GRAPH].numpy().tobytes())
        return model.get_submodule("net"), record.input_shape, len(record.classes), graph, record
    found = read_student(path, shape)
    for note in found.notes:
        say(f"note: {note}")
    say(f"note: '{path}' is the student: {found.learned:,} of its numbers are trained, {found.fixed:,} constants stay")
    return found.network, found.input_shape, found.classes, found.graph, found.record
