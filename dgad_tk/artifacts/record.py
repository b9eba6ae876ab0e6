"""The metadata record that every weights, TorchScript, torch.export and ONNX file carries.

Because of it, `dgad attack --model student.onnx` needs no further flag, and an old file says where it came from.
"""

import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata as packages
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dgad_tk.common import UserError
from dgad_tk.config.threat import ThreatModel

SCHEMA = "dgad/artifact/1"
LARGEST_IMAGE = 2**28
"""Numbers in one image. A record that claims more is damaged or hostile."""

KEY = "dgad"
"""Name of the record in a file's string metadata (safetensors, ONNX `metadata_props`, TorchScript extra file)."""


_TOOLS = [
    "dgad-tk",
    "torch",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "adversarial-robustness-toolbox",
    "pyautoattack",
]


class Artifact(BaseModel):
    """What a model file says about itself. Unknown keys are kept, so that an older version passes on a newer record."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    schema_: str = Field(SCHEMA, alias="schema", pattern="^dgad/artifact/")
    model: str
    """Name of the network for `build_model`, or of the file or module that it was made from."""
    network: dict[str, Any] = {}
    """Of a network that is no row of MODELS: where its source stood, and the SHA-256 of that source."""
    classes: list[str]
    """Class names, in the order of the logits."""
    input_shape: tuple[int, int, int]
    """(C, H, W)."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Of the input. Normalisation is inside the model."""
    output: Literal["logits"] = "logits"
    dataset: str
    dataset_options: dict[str, Any] = {}
    """Arguments that load the same images again: data_dir, image_size."""
    method: str = ""
    teacher: str = ""
    """Model name and SHA-256 of the teacher's weights; empty for a method without one."""
    threat: dict[str, Any] = {}
    """Norm, eps, step size and steps it was trained for."""
    precision: str = "float32"
    """What the file computes in: float32, float16 or int8. Input and logits are always float32."""
    normalize: dict[str, list[float]] = {}
    """mean and std that the model applies to its input."""
    training: dict[str, Any] = {}
    """Epochs, seed, best epoch, how it was selected, and accuracies on the validation split."""
    versions: dict[str, str] = {}
    source_sha256: str = ""
    """SHA-256 of the file this one was made from."""

    @field_validator("input_shape")
    @classmethod
    def _of_an_image(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(shape) < 1 or math.prod(shape) > LARGEST_IMAGE:
            raise ValueError(f"no image has the shape {shape}")
        return shape

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Artifact":
        """The record in a text; UserError where the text is not one."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{where}: the metadata record is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                hint="export the model again",
            ) from None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, str], where: str) -> "Artifact | None":
        """The record in a file's string metadata; None where there is none."""
        return cls.from_json(mapping[KEY], where) if KEY in mapping else None


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute, for the record and for results."""
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        with suppress(packages.PackageNotFoundError):  # ONNX Runtime comes under one of two names
            found[name] = packages.version(name)
    return found


def threat_of(artifact: Artifact) -> ThreatModel:
    """What the model was trained to resist; 8/255 where it was not."""
    known = {key: value for key, value in artifact.threat.items() if key in ThreatModel.model_fields}
    return ThreatModel.model_validate(known) if known else ThreatModel.of("linf", 8 / 255)
