"""Arrays on disk, and the progress of an unfinished attack, so that it can be killed and go on."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dgad_tk.common import written_aside


class Halfway:
    """Where an attack of several stages stores its progress between two stages.

    Args:
        path: of the file; None stores nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def get(self) -> dict[str, Any] | None:
        """What was stored last; None if there is no readable file."""
        return read_arrays(self.path)

    def put(self, **values: Any) -> None:
        """Store `values`: arrays, and what JSON can write."""
        write_arrays(self.path, values)

    def forget(self) -> None:
        """Delete the file, since the attack has finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


NOWHERE = Halfway()


def read_arrays(path: Path | None) -> dict[str, Any] | None:
    """What `write_arrays` wrote; None if there is no readable file."""
    if path is None or not path.is_file():
        return None
    try:
        with np.load(BytesIO(path.read_bytes())) as arrays:
            found = dict(arrays)
        plain = json.loads(str(found.pop("plain")))
        return {**found, **plain}
    except Exception:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
        return None


def write_arrays(path: Path | None, values: Mapping[str, Any]) -> None:
    """Write arrays, and plain values as JSON, aside and rename the file."""
    if path is None:
        return
    arrays: dict[str, Any] = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    plain = {key: value for key, value in values.items() if key not in arrays}
    with written_aside(path) as aside:
        np.savez_compressed(aside, **arrays, plain=np.array(json.dumps(plain)))
