"""The quota of processor time that Linux gives a process: containers, CI runners and services have one.

A control group (cgroup) has a quota, such as 150 ms in each 100 ms, which is worth 1.5 cores; so may any group above
it, and the smallest holds. Neither the number of cores nor the affinity shows it, and a process that runs more threads
than it has cores for is stopped for the rest of each period. Version 2 of cgroups has one tree; version 1 has one for
each kind of limit. Both are found as `man 7 cgroups` and `man 5 proc_pid_mountinfo` describe.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ESCAPED = re.compile(r"\\([0-7]{3})")
_LIMIT = re.compile(r"(\d+) (\d+)\s*")


@dataclass(frozen=True)
class _Tree:
    """A mounted tree of control groups that may limit processor time.

    Attributes:
        version: of cgroups, 1 or 2.
        top: the group that stands at the mount point.
        mounted: the mount point.
    """

    version: int
    top: PurePosixPath
    mounted: Path


def core_quota(root: Path = Path("/")) -> float | None:
    """How many cores the process' quota of time is worth; None where none is set, or the system says nothing.

    Args:
        root: of the file system that is asked.
    """
    groups = dict(_groups(root))
    limits = [
        limit
        for tree in _trees(root)
        if tree.version in groups
        for folder in _folders(tree, groups[tree.version])
        if (limit := _limit(tree.version, folder)) is not None
    ]
    return min(limits, default=None)


def _lines(path: Path) -> list[str]:
    """Nothing where the file cannot be read: other systems have none."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return []


def _groups(root: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """The groups of the process that may limit its time, by the version of their tree."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            yield 2, PurePosixPath(group)
        elif "cpu" in controllers.split(","):
            yield 1, PurePosixPath(group)


def _trees(root: Path) -> Iterator[_Tree]:
    for line in _lines(root / "proc/self/mountinfo"):
        where, _, what = line.partition(" - ")
        fields, kinds = where.split(), what.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        top, mounted = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), field) for field in fields[3:5])
        version = {"cgroup2": 2, "cgroup": 1}.get(kinds[0])
        if version == 2 or (version == 1 and "cpu" in kinds[2].split(",")):
            yield _Tree(version, PurePosixPath(top), root / mounted.lstrip("/"))


def _folders(tree: _Tree, group: PurePosixPath) -> Iterator[Path]:
    """The folder of the group and those above it, as far as this process sees them.

    Inside a container the group may be named as the host sees it, while the container's own stands at the mount point.
    """
    inside = PurePosixPath()
    if ".." not in group.parts and group.is_relative_to(tree.top):
        inside = group.relative_to(tree.top)
    for each in (inside, *inside.parents):
        yield tree.mounted / each


def _limit(version: int, folder: Path) -> float | None:
    """The quota of one group in cores."""
    if version == 2:
        text = " ".join(_lines(folder / "cpu.max"))
    else:
        text = " ".join(line for name in ("quota", "period") for line in _lines(folder / f"cpu.cfs_{name}_us"))
    found = _LIMIT.fullmatch(text)  # else "max", or -1, or nothing
    if found is None or int(found[1]) == 0 or int(found[2]) == 0:
        return None
    return int(found[1]) / int(found[2])
