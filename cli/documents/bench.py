"""`dgad bench --json`."""

from typing import Literal

from pydantic import Field

from cli.documents.base import Count, Part, Share


class Environment(Part):
    """What computed the numbers. Versions of libraries stand beside these keys, by the libraries' names."""

    model_config = Part.model_config | {"extra": "allow"}

    processor: str
    """Name of the CPU."""
    cores: Count
    """Cores that the process may run on."""
    quota: float | None = None
    """How many cores the process' quota of time is worth, as in a container; null where there is none."""
    load_average: float | None
    """Of the minute before; null where the system does not say."""


class Images(Part):
    """The images that `--robust` attacked."""

    name: str
    """Row of `dgad list datasets`."""
    split: str
    """train, val or test."""
    n: Count
    """How many."""


class Threat(Part):
    """The ball that `--robust` searched."""

    norm: Literal["linf"]
    """Of the ball."""
    eps: float
    """Its radius, a fraction of 1."""


class Timed(Part):
    """One file at one batch size and number of threads."""

    batch: Count
    """Images at a time."""
    threads: Count
    """Threads of the runtime."""
    p50_ms: float
    """Median time of a call, from a batch in the host's memory to its logits there."""
    p95_ms: float
    """The time that 95 % of the calls stay below."""
    images_per_second: float
    """Batch size over the median."""
    relative: float | None
    """How many times the first file's throughput in the same setting; null if that was not measured."""
    runs: Count
    """Calls that were timed."""
    peak_memory_bytes: int | None
    """The process' largest resident memory, less what its imports took; null off Linux."""
    runtime: str
    """What ran the file."""


class Robust(Part):
    """What PGD found, or why the file was refused."""

    status: Literal["done", "refused"]
    """Whether there are figures."""
    reason: str
    """Why there are none; empty where there are."""
    clean_accuracy: Share | None = None
    """Share of the images that are right."""
    robust_accuracy: Share | None = None
    """Share that is right and withstands."""
    ci95: tuple[Share, Share] | None = None
    """95 % Wilson interval of `robust_accuracy`."""
    steps: Count | None = None
    """Steps of PGD."""
    twin: dict[str, float] = Field(default={})
    """How far the module that gives gradients is from the runtime; empty where both are one."""
    notes: list[str] = Field(default=[])
    """What to know about these figures."""


class File(Part):
    """One file: what it is, how fast, and with `--robust` what is left of it under attack."""

    path: str
    """Where it lies."""
    format: str
    """onnx, torchscript, torch-export or safetensors."""
    sha256: str
    """Of its bytes."""
    bytes: Count
    """Size on disk, external data included."""
    sample: list[Count]
    """Shape of one image as the file takes it, without the batch."""
    dtype: str
    """Type of its input."""
    fixed_batch: Count | None
    """The only batch size that it takes; null where it takes any."""
    has_batch_axis: bool
    """Whether its input has an axis that counts images."""
    parameters: Count
    """Numbers that were trained, however they are stored."""
    weights: str
    """Type in which most of them are stored."""
    multiply_adds: Count | None
    """Of one image, in convolutions and matrix products; null where they cannot be counted."""
    measurements: list[Timed]
    """One for each batch size and number of threads."""
    robust: Robust | None = None
    """Only with `--robust`."""


class Bench(Part):
    """Files timed side by side in their own runtimes."""

    schema_: Literal["dgad/bench/1"]
    """Name and version of this document."""
    created: str
    """ISO 8601."""
    command: str
    """As it was typed."""
    provider: str
    """cpu or cuda."""
    seconds: float
    """For which each file was timed in each setting."""
    environment: Environment
    """Machine and versions."""
    files: list[File]
    """In the order in which they were named."""
    dataset: Images | None = None
    """Only with `--robust`."""
    threat: Threat | None = None
    """Only with `--robust`."""
