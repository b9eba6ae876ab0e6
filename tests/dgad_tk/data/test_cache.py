"""The cache of decoded images: whole or absent, for one process or several, after a crash, on a full disk."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import ROOT

from dgad_tk.common import UserError
from dgad_tk.data import Dataset, cache, decoding, load_dataset


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0)
    for folder in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / folder / name).mkdir(parents=True)
            for image in range(4):
                path = tmp_path / "data" / folder / name / f"{image}.png"
                Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "data"


def load(tree: Path, size: int = 8) -> Dataset:
    return load_dataset("imagefolder", data_dir=tree, image_size=size)


def entries(cache_folder: Path) -> list[Path]:
    return sorted(cache_folder.glob("imagefolder-*"))


def forbid(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, refuse)


def test_arrays_are_plain_npy_files(tree: Path, cache_folder: Path) -> None:
    dataset = load(tree)
    (entry,) = entries(cache_folder)
    np.testing.assert_array_equal(np.load(entry / "train-images.npy"), dataset.train.base)
    np.testing.assert_array_equal(np.load(entry / "test-labels.npy")[dataset.test.index], dataset.test.labels)
    assert isinstance(dataset.train.base, np.memmap)
    assert not dataset.train.base.flags.writeable


def test_second_load_reads_no_image(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(tree)
    forbid(monkeypatch, decoding, "decode")
    forbid(monkeypatch, cache, "sha256_file")
    second = load(tree)
    assert (second.sha256, second.classes, second.options) == (first.sha256, first.classes, first.options)


def test_a_copy_elsewhere_is_hashed_but_not_decoded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(tree).sha256
    shutil.copytree(tree, tree.parent / "copy")
    forbid(monkeypatch, decoding, "decode")
    assert load(tree.parent / "copy").sha256 == expected


def test_each_size_has_an_entry(tree: Path, cache_folder: Path) -> None:
    assert (load(tree, 8).shape, load(tree, 16).shape, load(tree, 8).shape) == (
        (3, 8, 8),
        (3, 16, 16),
        (3, 8, 8),
    )
    assert len(entries(cache_folder)) == 2


def test_new_content_under_an_old_stat_is_noticed(tree: Path) -> None:
    """Same name, size and mtime, as `cp -p` or an archive leaves them."""
    image = tree / "train" / "cat" / "0.bmp"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    before, status = load(tree), image.stat()
    time.sleep(0.02)  # a file system's clock may tick only every few milliseconds
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(image)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert image.stat().st_size == status.st_size
    assert load(tree).sha256 != before.sha256


@pytest.mark.parametrize("name", ["train-images.npy", "train-labels.npy", "test-images.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "header"])
def test_a_damaged_entry_is_rebuilt(tree: Path, cache_folder: Path, name: str, damage: str) -> None:
    expected = load(tree)
    pixels = np.array(expected.train.base)  # a copy: cutting a file short under its own map is deadly
    (entry,) = entries(cache_folder)
    path = entry / name
    whole = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(whole[:-5])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "header":
            path.write_bytes(b"x" * 100 + whole[100:])
    again = load(tree)
    assert again.sha256 == expected.sha256
    np.testing.assert_array_equal(again.train.base, pixels)
    assert path.read_bytes() == whole
    assert not list(cache_folder.glob(".building-*"))


def test_whatever_byte_of_a_header_is_damaged_the_entry_is_rebuilt(tree: Path, cache_folder: Path) -> None:
    expected = load(tree).sha256
    (entry,) = entries(cache_folder)
    path = entry / "train-labels.npy"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for at in rng.integers(0, 128, 3):
            damaged[at] = rng.choice(list(b"(){}[]'\\\"#\0 x9\xff"))
        path.write_bytes(bytes(damaged))
        found = cache._open(entry)
        assert found is None or found.parts["train"].labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert load(tree).sha256 == expected


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 1, "shapes": [], "classes": [], "sha256": ""}', '{"format": 0}']
)
def test_a_foreign_record_is_rebuilt(tree: Path, cache_folder: Path, text: str) -> None:
    expected = load(tree)
    (entry,) = entries(cache_folder)
    (entry / "meta.json").write_text(text)
    assert load(tree).sha256 == expected.sha256 == json.loads((entry / "meta.json").read_text())["sha256"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe"])
def test_a_damaged_index_is_rebuilt(tree: Path, cache_folder: Path, content: bytes) -> None:
    expected = load(tree).sha256
    (index,) = (cache_folder / "index").iterdir()
    whole = index.read_bytes()
    index.write_bytes(content)
    assert load(tree).sha256 == expected
    assert index.read_bytes() == whole


# Several processes, killed processes


def test_processes_that_build_at_once_agree(tree: Path, cache_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from PIL import Image; from dgad_tk.data import load_dataset; "
        "print('ready', flush=True); sys.stdin.read(1); "
        "d = load_dataset('imagefolder', data_dir=Path(sys.argv[1]), image_size=64); "
        "print(d.sha256, int(d.train.take(slice(None)).sum()))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tree)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all have imported what they need and go together
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert len(entries(cache_folder)) == 1
    assert not list(cache_folder.glob(".building-*"))


def test_the_loser_takes_the_winners_entry(tree: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cache._write
    winner = []

    def overtaken(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(cache, "_write", write)
        winner.append(load(tree))
        winner.append(entries(cache_folder)[0].stat().st_ino)

    monkeypatch.setattr(cache, "_write", overtaken)
    assert load(tree).sha256 == winner[0].sha256
    assert entries(cache_folder)[0].stat().st_ino == winner[1]


def test_an_interrupted_build_leaves_nothing(tree: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache, "content_sha256", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load(tree)
    assert [path.name for path in cache_folder.iterdir()] == ["index"]
    assert len(load(tree).train) == 7


def test_a_killed_build_is_harmless(tree: Path, cache_folder: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dgad_tk.data import cache, load_dataset; "
        "cache.content_sha256 = lambda *_: os._exit(9); "
        "load_dataset('imagefolder', data_dir=Path(sys.argv[1]), image_size=8)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tree)], cwd=ROOT)
    assert run.returncode == 9
    (leftover,) = cache_folder.glob(".building-*")
    assert not entries(cache_folder)
    assert len(load(tree).train) == 7
    assert leftover.exists()  # it may be at work still
    os.utime(leftover, (0, 0))
    load(tree, 16)
    assert not leftover.exists()


# Where nothing can be written, or something changes


def test_a_cache_that_cannot_be_made(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        UserError, match=r"cannot write the dataset cache .*file.cache.datasets: Not a directory"
    ) as error:
        load(tree)
    assert "DGAD_CACHE" in error.value.hint


def test_a_full_disk(tree: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device") as error:
            load(tree)
    assert "DGAD_CACHE" in error.value.hint
    assert not entries(cache_folder)
    assert len(load(tree).train) == 7


def test_a_full_index_does_not_matter(tree: Path, cache_folder: Path) -> None:
    expected = load(tree).sha256
    shutil.rmtree(cache_folder / "index")
    (cache_folder / "index").write_text("in the way")
    assert load(tree).sha256 == expected


def test_files_that_change_meanwhile(tree: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = decoding.decode

    def meddling(path: Path, size: int, *, exact: bool) -> object:
        if path == tree / "train" / "dog" / "3.png":
            (tree / "train" / "cat" / "0.png").write_bytes(b"")
        return decode(path, size, exact=exact)

    monkeypatch.setattr(decoding, "decode", meddling)
    with pytest.raises(UserError, match=r"0\.png was changed while it was being read"):
        load(tree)
    assert not entries(cache_folder)


def test_a_corrupt_image_leaves_no_entry(tree: Path, cache_folder: Path) -> None:
    (tree / "test" / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"dog.3\.png cannot be read as an image"):
        load(tree)
    assert [path.name for path in cache_folder.iterdir()] == ["index"]
