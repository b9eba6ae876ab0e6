"""Quotas are read as Linux' manual pages describe them, from trees made of files."""

import shutil
from pathlib import Path

import pytest

from dgad_tk.quota import core_quota

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "34 25 0:30 / /sys/fs/cgroup/memory rw shared:12 - cgroup cgroup rw,memory\n"
NAMED_V1 = "12:pids:/a\n4:cpu,cpuacct:/a/b\n3:memory:/c\n1:name=systemd:/d\n"


def system(root: Path, groups: str, mounts: str) -> Path:
    """A file system with these groups and mounts of the process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(f"22 27 0:21 / /proc rw - proc proc rw\n{mounts}")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    return root


def write(root: Path, folder: str, **files: str) -> None:
    (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / folder / name.replace("cpu_", "cpu.")).write_text(f"{text}\n")


def test_version_2(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", V2)
    assert core_quota(root) is None
    write(root, "", cpu_max="max 100000")
    assert core_quota(root) is None
    write(root, "", cpu_max="150000 100000")
    assert core_quota(root) == 1.5
    write(root, "", cpu_max="20000 10000")
    assert core_quota(root) == 2


def test_version_1_knows_the_tree_of_processors_from_the_others(tmp_path: Path) -> None:
    root = system(tmp_path, NAMED_V1, MEMORY + V1)
    write(root, "memory/c", cpu_cfs_quota_us="1", cpu_cfs_period_us="100000")
    write(root, "cpu,cpuacct/a", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    assert core_quota(root) is None
    write(root, "cpu,cpuacct/a/b", cpu_cfs_quota_us="50000", cpu_cfs_period_us="100000")
    assert core_quota(root) == 0.5


@pytest.mark.parametrize("own", ["max 100000", "400000 100000"])
def test_the_smallest_quota_above_a_group_holds(own: str, tmp_path: Path) -> None:
    root = system(tmp_path, "0::/kubepods/pod7/container\n", V2)
    write(root, "kubepods/pod7/container", cpu_max=own)
    write(root, "kubepods/pod7", cpu_max="300000 100000")
    write(root, "kubepods/pod8", cpu_max="1000 100000")
    write(root, "kubepods", cpu_max="max 100000")
    assert core_quota(root) == 3


def test_a_container_that_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    """Docker on version 1: the process' group has the host's name, the mount begins at that group."""
    mounts = V1.replace("0:29 /", "0:29 /docker/4f2a")
    root = system(tmp_path, "4:cpu,cpuacct:/docker/4f2a\n", mounts)
    write(root, "cpu,cpuacct", cpu_cfs_quota_us="250000", cpu_cfs_period_us="100000")
    assert core_quota(root) == 2.5


@pytest.mark.parametrize("group", ["/../../elsewhere", "/not/in/this/tree", ""])
def test_a_group_that_cannot_be_seen_leaves_the_top(group: str, tmp_path: Path) -> None:
    root = system(tmp_path, f"0::{group}\n", V2.replace("0:26 /", "0:26 /docker/4f2a"))
    write(root, "", cpu_max="100000 100000")
    assert core_quota(root) == 1


def test_both_versions_at_once(tmp_path: Path) -> None:
    unified = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    root = system(tmp_path, NAMED_V1 + "0::/e\n", V1 + unified)
    write(root, "unified/e", cpu_max="max 100000")
    write(root, "cpu,cpuacct/a/b", cpu_cfs_quota_us="700000", cpu_cfs_period_us="200000")
    assert core_quota(root) == 3.5


def test_a_mount_point_with_a_blank(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/a\040b"))
    write(root, "a b", cpu_max="100000 100000")
    assert core_quota(root) == 1


@pytest.mark.parametrize("text", ["", "fast", "100000", "-1 100000", "0 100000", "100000 0", "1e5 100000", "9 9 9"])
def test_what_is_no_quota(text: str, tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", V2)
    write(root, "", cpu_max=text)
    assert core_quota(root) is None


@pytest.mark.parametrize("lost", ["proc/self/cgroup", "proc/self/mountinfo", "proc", "sys"])
def test_systems_that_say_nothing(lost: str, tmp_path: Path) -> None:
    """macOS and Windows have none of these files, other systems hide some."""
    root = system(tmp_path, "0::/\n", V2)
    write(root, "", cpu_max="100000 100000")
    assert core_quota(root) == 1
    (shutil.rmtree if (root / lost).is_dir() else Path.unlink)(root / lost)  # type: ignore[operator]
    assert core_quota(root) is None


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/a\n", V2)
    (root / "sys/fs/cgroup/a/cpu.max").mkdir(parents=True)  # reading it is an error of the system, as a refusal is
    write(root, "", cpu_max="200000 100000")
    assert core_quota(root) == 2


@pytest.mark.parametrize("line", ["", "0", "::", "30 23 0:26", " - ", "30 23 0:26 / /x rw - cgroup2", "\udcff"])
def test_lines_that_are_not_understood(line: str, tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", V2)
    write(root, "", cpu_max="200000 100000")
    for name in ("cgroup", "mountinfo"):
        with (root / "proc/self" / name).open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{line}\n")
    assert core_quota(root) == 2
