"""`dgad inspect`."""

from typing import Any, Literal

from cli.documents.base import Count, Part


class Inspected(Part):
    """What a model file is and says about itself."""

    schema_: Literal["dgad/inspect/1"]
    """Name and version of this document."""
    file: str
    """The file."""
    sha256: str
    """Of its bytes."""
    format: str
    """onnx, torchscript, torch-export or safetensors."""
    runtime: str
    """What runs it here, and judges in `dgad attack`."""
    precision: str
    """What it computes in: fp32, fp16, int8 or the like."""
    input_shape: tuple[Count, Count, Count]
    """(C, H, W) of one image."""
    layout: Literal["nchw", "nhwc"]
    """Order of the axes of its input."""
    batch: Count | Literal["any"]
    """The only number of images that it takes at a time, or `any`."""
    classes: Count
    """Number of its logits."""
    logits_output: str | None
    """Name of the output that holds them; null where the file has no names."""
    notes: list[str]
    """How the file was understood, where that was not plain."""
    metadata: dict[str, Any] | None
    """The record of its training, schema `dgad/artifact/1`; null for a file from elsewhere."""
