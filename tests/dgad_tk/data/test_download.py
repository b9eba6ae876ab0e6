"""`--download`: asked for, checked, whole or not there. The network is a folder of files here."""

import hashlib
import io
import shutil
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_fashion, write_svhn
from torchvision import datasets
from torchvision.datasets import utils

from dgad_tk.common import UserError, cache_dir
from dgad_tk.data import download, load_dataset

Net = dict[str, bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dgad_tk.data.sources.fashion_mnist.DEBIAN", tmp_path / "debian")


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """URL to content; what torchvision downloads comes from here, its check of the MD5 stays."""
    content: Net = {}

    def retrieve(url: str, path: str) -> None:
        if url not in content:
            raise urllib.error.URLError("no route to host")
        Path(path).write_bytes(content[url])

    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    return content


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar10(net: Net, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small CIFAR-10 at the official address."""
    from cifar_files import contents, python2

    files = {
        f"cifar-10-batches-py/{name}": python2({b"data": pixels, b"labels": labels})
        for name, (pixels, labels) in contents("cifar10").items()
    }
    files["cifar-10-batches-py/batches.meta"] = python2({b"label_names": [b"%d" % n for n in range(10)]})
    net[datasets.CIFAR10.url] = packed(files)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(net[datasets.CIFAR10.url]))
    return net[datasets.CIFAR10.url]


def test_nothing_is_fetched_unasked(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_fetch", lambda *_: pytest.fail("fetched"))
    for name in ("fashion-mnist", "cifar10", "cifar100", "svhn"):
        for data_dir in (None, tmp_path):
            with pytest.raises(UserError, match="^no ") as error:
                load_dataset(name, data_dir=data_dir)
            assert "--data-dir ROOT" in error.value.hint
            assert "or --download" in error.value.hint


def test_downloaded_once_and_found_later(net: Net, cifar10: bytes) -> None:
    first = load_dataset("cifar10", download=True)
    assert first.options == {}
    net.clear()
    assert load_dataset("cifar10", download=True).sha256 == load_dataset("cifar10").sha256 == first.sha256
    assert [path.name for path in (cache_dir() / "downloads" / "cifar10").iterdir()] == ["cifar-10-batches-py"]


def test_downloaded_to_a_folder(tmp_path: Path, cifar10: bytes) -> None:
    root = tmp_path / "new" / "folder"
    dataset = load_dataset("cifar10", data_dir=root, download=True)
    assert dataset.options == {"data_dir": str(root)}
    assert load_dataset("cifar10", data_dir=root).sha256 == dataset.sha256
    assert not (cache_dir() / "downloads").exists()


def test_an_archive_that_lies_there_is_unpacked(tmp_path: Path, net: Net, cifar10: bytes) -> None:
    net.clear()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar10)
    assert len(load_dataset("cifar10", data_dir=tmp_path, download=True).test) == 30
    assert (tmp_path / "cifar-10-python.tar.gz").exists()


def test_only_what_is_missing_is_filled_in(tmp_path: Path, cifar10: bytes) -> None:
    whole = load_dataset("cifar10", data_dir=tmp_path, download=True)
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "data_batch_2").unlink()
    (folder / "notes").write_text("mine")
    before = (folder / "data_batch_1").stat().st_ctime_ns
    assert load_dataset("cifar10", data_dir=tmp_path, download=True).sha256 == whole.sha256
    assert ((folder / "notes").read_text(), (folder / "data_batch_1").stat().st_ctime_ns) == ("mine", before)


def test_an_archive_cannot_write_elsewhere(tmp_path: Path, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net[datasets.CIFAR100.url] = packed({"cifar-100-python/train": b"x", "../../../escaped": b"x"})
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", md5(net[datasets.CIFAR100.url]))
    with pytest.raises(UserError, match="cannot be unpacked"):
        load_dataset("cifar100", data_dir=tmp_path / "a" / "b", download=True)
    assert not list(tmp_path.rglob("escaped"))
    assert not list(tmp_path.rglob(".downloading*"))


def test_svhn(tmp_path: Path, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path / "source")
    changed = {}
    for part, (url, name, _) in datasets.SVHN.split_list.items():
        if part != "extra":
            net[url] = (tmp_path / "source" / name).read_bytes()
            changed[part] = [url, name, md5(net[url])]
    monkeypatch.setattr(datasets.SVHN, "split_list", changed)
    assert load_dataset("svhn", download=True).sha256 == load_dataset("svhn", data_dir=tmp_path / "source").sha256
    assert len(load_dataset("svhn").test) == 42


def test_fashion_mnist(tmp_path: Path, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path / "source")
    resources = []
    for name, _ in datasets.FashionMNIST.resources:
        net[datasets.FashionMNIST.mirrors[0] + name] = content = (tmp_path / "source" / name).read_bytes()
        resources.append((name, md5(content)))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    expected = load_dataset("fashion-mnist", data_dir=tmp_path / "source").sha256
    assert load_dataset("fashion-mnist", download=True).sha256 == expected
    assert load_dataset("fashion-mnist").sha256 == expected
    assert load_dataset("fashion-mnist", data_dir=tmp_path / "root", download=True).sha256 == expected
    assert len(list((tmp_path / "root" / "FashionMNIST" / "raw").glob("*.gz"))) == 4  # where torchvision keeps them


def other_content(net: Net) -> None:
    net[datasets.CIFAR10.url] = b"<html>log in to this network first</html>"


@pytest.mark.parametrize(("breaks", "message"), [(Net.clear, "no route to host"), (other_content, "corrupted")])
def test_a_failed_download_leaves_nothing(
    tmp_path: Path, net: Net, cifar10: bytes, breaks: Callable[[Net], None], message: str
) -> None:
    breaks(net)
    with pytest.raises(UserError, match=f"cannot download https://www.cs.toronto.edu.*{message}") as error:
        load_dataset("cifar10", data_dir=tmp_path / "root", download=True)
    assert "--data-dir" in error.value.hint
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "root").iterdir())


@pytest.mark.parametrize("name", ["svhn", "fashion-mnist", "cifar100"])
def test_no_network(name: str, net: Net) -> None:
    with pytest.raises(UserError, match="cannot download http.*no route to host"):
        load_dataset(name, download=True)


def test_a_folder_that_cannot_be_made(tmp_path: Path, cifar10: bytes) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot download to .*file.root: Not a directory"):
        load_dataset("cifar10", data_dir=tmp_path / "file" / "root", download=True)


@pytest.mark.parametrize("name", ["digits", "imagefolder"])
def test_what_cannot_be_downloaded(name: str) -> None:
    with pytest.raises(UserError, match="takes no --download"):
        load_dataset(name, download=True)


def test_a_download_holds_what_was_sent(tmp_path: Path, cifar10: bytes) -> None:
    from cifar_files import contents

    dataset = load_dataset("cifar10", download=True)
    expected = np.concatenate([pixels for pixels, _ in list(contents("cifar10").values())[:5]])
    np.testing.assert_array_equal(dataset.train.base.reshape(-1, 3072), expected)
    shutil.rmtree(cache_dir() / "datasets")  # decoded again from the downloaded files
    assert load_dataset("cifar10").sha256 == dataset.sha256
