"""A file of arrays: an attack stores its progress in one, so that it can be killed and go on; so do finished units."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dgad_tk.common import written_aside


class ArrayFile:
    """A file that holds arrays, and what JSON can write, by name.

    Args:
        path: of the file; None stores nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def get(self) -> dict[str, Any] | None:
        """What was stored last; None if there is no readable file."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with np.load(BytesIO(self.path.read_bytes())) as arrays:
                found = dict(arrays)
            plain = json.loads(str(found.pop("plain")))
            return {**found, **plain}
        except Exception:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
            return None

    def put(self, **values: Any) -> None:
        """Store `values`. They are written aside, and the file is renamed."""
        if self.path is None:
            return
        arrays: dict[str, Any] = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in values.items() if key not in arrays}
        with written_aside(self.path) as aside:
            np.savez_compressed(aside, **arrays, plain=np.array(json.dumps(plain)))

    def forget(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


NOWHERE = ArrayFile()
