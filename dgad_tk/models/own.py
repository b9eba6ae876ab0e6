"""Networks of the user's own: `path/to/file.py:build`, `package.module:build`, and entry points of installed packages.

The first two run code that a name points to. So a name that a user types is followed, and one that stands in a record
or a config from elsewhere only where the user trusts it: `names_code` tells which names these are. Entry points belong
to packages that somebody installed, as torchvision is.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

from torch import nn

from dgad_tk.common import UserError, nearest, reason_of
from dgad_tk.models.libraries import LIBRARIES

GROUP = "dgad_tk.models"
"""Entry points of this group are functions of `in_channels` and `classes`, by the name of their network."""
HANDED = "python"
"""What stands before the colon of the name of a module that was handed over in Python."""

PLACES = {
    "FILE.py:FUNCTION": "your own: the function gets in_channels and classes, and returns a torch.nn.Module",
    "MODULE:FUNCTION": "the same of a module that is installed, or below the working folder",
}
"""Forms of the names of a user's own networks."""

ONNX = "onnx"
"""What stands before the colon of the name of a network that was made from an ONNX file."""

_returned: WeakSet[nn.Module] = WeakSet()
"""Networks that functions have returned: a student and its teacher are never one."""

_CHANNELS, _CLASSES = ("in_channels", "in_chans", "channels"), ("classes", "num_classes", "n_classes")
_SHAPE = "it is a function of in_channels and classes that returns a torch.nn.Module"
_EXAMPLE = "for example --student nets/mine.py:build, or --student package.module:build"


@dataclass(frozen=True)
class Own:
    """A function that builds a network, and where it stands.

    Attributes:
        name: as the user wrote it.
        function: what was found there.
        path: of its source; None if it has none.
        sha256: of that source.
        package: name and version of the installed package whose entry point it is; else empty.
    """

    name: str
    function: Callable[..., object]
    path: Path | None
    sha256: str
    package: str = ""

    def __call__(self, in_channels: int, classes: int) -> nn.Module:
        """The network, randomly initialised.

        Raises:
            UserError: the function fails, or returns no network.
        """
        values, named = self._arguments(in_channels, classes)
        with _importing_from(self.path), redirect_stdout(sys.stderr):
            try:
                found = self.function(*values, **named)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
                raise UserError(
                    f"{self.name} raised {_told(error, self.path)} for {in_channels} channels and {classes} classes",
                    hint=_SHAPE,
                ) from None
        if not isinstance(found, nn.Module):
            kind = type(found).__name__
            raise UserError(f"{self.name} returned no torch.nn.Module, but a value of type {kind}", hint=_SHAPE)
        if not any(parameter.requires_grad for parameter in found.parameters()):
            raise UserError(f"{self.name} returned a network without weights to train", hint=_SHAPE)
        if found in _returned:
            raise UserError(f"{self.name} returned the same network twice", hint="build a new one at each call")
        _returned.add(found)
        return found

    def check_signature(self) -> None:
        """See that the function can be called with a number of channels and one of classes.

        Raises:
            UserError: it takes other arguments.
        """
        self._arguments(3, 10)

    def _arguments(self, in_channels: int, classes: int) -> tuple[tuple[int, ...], dict[str, int]]:
        """Positional and keyword arguments: by name those whose names are known here, else both by position."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # of a function without Python source
            return (in_channels, classes), {}
        named = {
            each: value
            for names, value in ((_CHANNELS, in_channels), (_CLASSES, classes))
            for each in [next((name for name in names if name in signature.parameters), "")]
            if each and signature.parameters[each].kind is not inspect.Parameter.POSITIONAL_ONLY
        }
        if not named and any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()):
            named = {_CHANNELS[0]: in_channels, _CLASSES[0]: classes}
        values = () if named else (in_channels, classes)
        try:
            signature.bind(*values, **named)
        except TypeError as error:
            raise UserError(
                f"{self.name} cannot be called with in_channels and classes: {error}", hint=_SHAPE
            ) from None
        return values, named

    def said(self) -> dict[str, str]:
        """What a record says about the source."""
        return {"name": self.name, "source_sha256": self.sha256} | ({"package": self.package} if self.package else {})


def names_code(name: str) -> bool:
    """Whether building a network of this name runs code that stands where the name says."""
    place, colon, _ = name.rpartition(":")
    return bool(colon) and place not in LIBRARIES and place not in (HANDED, ONNX)


def own_network(name: str) -> Own | None:
    """The function of a name that `names_code`, or of an entry point; None for any other name.

    Raises:
        UserError: there is no such file, module or function, or importing it fails.
    """
    place, _, function = name.rpartition(":")
    if place == HANDED:
        raise UserError(
            f"the network '{name}' was handed over in Python, so its name alone does not build it",
            hint="in Python: load_model(path, network=module); an exported file needs no source",
        )
    if place == ONNX:
        raise UserError(
            f"the network '{name}' was made from an ONNX file, so its name alone does not build it",
            hint="--init FILE.onnx makes a student of such a file",
        )
    if not names_code(name):
        return _of_entry_point(name) if not place and name in entry_point_names() else None
    if not function:
        raise UserError(f"model '{name}' names no function", hint=_EXAMPLE)
    module, path, digest = _from_file(place, name) if place.endswith(".py") else _from_package(place, name)
    found = getattr(module, function, None)
    if not callable(found):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        lacks = f"'{place}' has no function '{function}'"
        raise UserError(
            lacks if found is None else f"{lacks}, but a value of type {type(found).__name__}",
            hint=nearest(function, known, _SHAPE),
        )
    own = Own(name, found, path, digest)
    own.check_signature()
    return own


def entry_point_names() -> dict[str, list[EntryPoint]]:
    """Entry points of GROUP by name. Nothing of them is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for each in entry_points(group=GROUP):
        others = found.setdefault(each.name, [])
        if all(each.value != other.value for other in others):  # two copies of a package on the path are one
            others.append(each)
    return found


def distribution_of(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"


def _of_entry_point(name: str) -> Own:
    entry, *others = entry_point_names()[name]
    package = distribution_of(entry)
    if others:
        raise UserError(
            f"model '{name}' is an entry point of {' and of '.join(map(distribution_of, [entry, *others]))}",
            hint=f"name one of them by its function: {entry.value}",
        )
    _, path, digest = _from_package(entry.module, name)
    try:
        found = entry.load()
    except AttributeError:
        raise UserError(
            f"the entry point '{name}' of {package} names no function: {entry.value}", hint=_SHAPE
        ) from None
    if not callable(found):
        raise UserError(f"the entry point '{name}' of {package} is of type {type(found).__name__}", hint=_SHAPE)
    own = Own(name, found, path, digest, package)
    own.check_signature()
    return own


_read: dict[tuple[Path, str], ModuleType] = {}
"""Files that were run, by path and SHA-256."""


def _from_file(place: str, name: str) -> tuple[ModuleType, Path, str]:
    """The module that a file of Python is, its path and its SHA-256: those of the bytes that were run."""
    path = Path(os.path.expanduser(place))
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "no such file"
        raise UserError(f"cannot read '{place}', the source of model '{name}': {what}", hint=_EXAMPLE)
    path = path.resolve()
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if (known := _read.get((path, digest))) is not None:
        return known, path, digest
    own_name = f"dgad_own_{path.stem.replace('.', '_')}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(own_name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # dataclasses and pickles look modules up there
    with _importing_from(path), redirect_stdout(sys.stderr):
        try:
            exec(compile(content, str(path), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's file may raise anything
            del sys.modules[own_name]
            raise _does_not_import(place, name, error, path) from None
    _read[path, digest] = module
    return module, path, digest


def _from_package(place: str, name: str) -> tuple[ModuleType, Path | None, str]:
    """A module by its dotted name, which may also stand below the working folder; its source and its SHA-256."""
    if not all(part.isidentifier() for part in place.split(".")):
        raise UserError(f"model '{name}': '{place}' is neither a file that ends in .py nor a module", hint=_EXAMPLE)
    with _importing_from(Path.cwd() / "any"), redirect_stdout(sys.stderr):
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise _does_not_import(place, name, error, None) from None
            known = "." not in place and nearest(place, LIBRARIES, " ").strip()
            if known:
                raise UserError(f"unknown library '{place}' in model '{name}'", hint=known) from None
            raise UserError(
                f"no module '{error.name}' for model '{name}'",
                hint=f"it is installed, or below this folder; {_EXAMPLE}",
            ) from None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
            raise _does_not_import(place, name, error, None) from None
    file = getattr(module, "__file__", None)
    if file is None or not os.path.isfile(file):
        return module, None, ""
    return module, Path(file), hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _does_not_import(place: str, name: str, error: BaseException, path: Path | None) -> UserError:
    return UserError(
        f"importing '{place}' for model '{name}' raised {_told(error, path)}",
        hint="see that Python imports it alone, in this environment",
    )


@contextmanager
def _importing_from(path: Path | None) -> Iterator[None]:
    """Let what stands beside a file be imported, as Python does for the script that it runs."""
    if path is None:
        yield
        return
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the user's code may have changed it
            sys.path.remove(folder)


def _told(error: BaseException, path: Path | None) -> str:
    """An exception of a user's code on one line, with the last line of their file that it came through."""
    said = reason_of(error) if isinstance(error, Exception) else str(error)
    kind = type(error).__name__
    frames: list[Any] = [each for each in traceback.extract_tb(error.__traceback__) if each.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    return (kind if said in ("", kind) else f"{kind}: {said}") + (
        f" (line {line})" if line and f"line {line}" not in said else ""
    )
