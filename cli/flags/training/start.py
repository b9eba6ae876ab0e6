"""What a run starts from where `--init` names an ONNX file, or a run that began with one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.config.training import TrainConfig
    from dgad_tk.data import Dataset
    from dgad_tk.training.job import Start

Starting = Callable[[Callable[[str], None]], "Callable[[Dataset], Start]"]
"""From what prints notes to the `start` of `train`."""


def graph_start(config: "TrainConfig", *, trust: bool) -> "tuple[TrainConfig, Starting | None]":
    """The config with the name of its student, where nobody has named one, and what makes it of an ONNX graph.

    None if the student starts from weights, which `dgad_tk` reads, or from nothing.

    Args:
        config: resolved.
        trust: run the source code that the record of first weights names.

    Raises:
        UserError: there is no such file, or it does not tell its network.
    """
    from dgad_tk.models import find_model
    from dgad_tk.models.own import ONNX
    from dgad_tk.training.starting.first_weights import named_by_its_weights
    from exporters.onnx_student.start import is_graph, start_from_graph

    source, mean, std = config.init, config.init_mean or (), config.init_std or ()
    if source is None:
        find_model(config.student)
        return config, None
    if not source.exists():
        raise UserError(f"no such file or run folder: '{source}'", hint="--init takes weights or an .onnx file")
    if not is_graph(source):
        config = named_by_its_weights(config, trust=trust)
        find_model(config.student)
        return config, None
    if "student" not in config.model_fields_set:
        config = config.model_copy(update={"student": f"{ONNX}:{source.stem}"})
    return config, lambda say: start_from_graph(source, mean=mean, std=std, say=say)
