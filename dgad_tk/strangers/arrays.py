"""Arrays in an .npz file of unknown origin."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_arrays(path: Path, wanted: Callable[[str], bool], *, most: int) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file whose names are wanted; nothing else is decompressed, and nothing is unpickled.

    Args:
        wanted: whether to read the array of a name.
        most: bytes of all these arrays. A file that claims more is damaged or hostile.

    Raises:
        Exception: of many kinds, since numpy, zipfile and zlib raise what damaged bytes lead them to. ValueError where
            the file claims too much.
    """
    with zipfile.ZipFile(path) as archive:
        members = [each for each in archive.infolist() if wanted(each.filename.removesuffix(".npy"))]
        if sum(each.file_size for each in members) > most:
            raise ValueError(f"more than {most:,} bytes")
        for member in members:
            with archive.open(member) as file:
                _check_size(file, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files if wanted(name)}


def _check_size(file: Any, size: int) -> None:
    """Raise ValueError where the header of an array speaks of more or fewer bytes than there are.

    numpy makes room for what the header says before it reads on.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its arrays are in version {version}")
    shape, _, dtype = _HEADERS[version](file)
    claimed = dtype.itemsize
    for length in shape:
        claimed *= length
    if file.tell() + claimed != size:
        raise ValueError(f"an array of {claimed:,} bytes is stored in {size:,}")


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
