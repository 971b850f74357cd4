"""The index of a tar: read instead of the tar, for as long as the tar is the same, and rebuilt when damaged."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from clip_distill.corpus import shard_index
from clip_distill.corpus.layout import Sources, scan
from clip_distill.corpus.shard_index import members


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIP_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w", errors="surrogateescape") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    return str(path)


def read_of(path: str) -> dict[str, bytes]:
    """Name → content, as the places say."""
    content = Path(path).read_bytes()
    return {member.name: content[member.offset : member.offset + member.size] for member in members(path)}


def forbid_walking(monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(path: str) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(shard_index, "_walk", walk)


FILES = {"000.jpg": b"photo", "000.txt": b"caption", "sub/bad\udcff.txt": b"no UTF-8", "empty.txt": b""}


def test_a_tar_is_read_once_and_its_index_says_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tar(tmp_path / "s.tar", FILES)
    assert read_of(path) == FILES
    assert [each.name for each in tmp_path.iterdir() if each != cache] == ["s.tar"]  # nothing beside the tar
    forbid_walking(monkeypatch)
    assert read_of(path) == FILES
    (tmp_path / "link.tar").symlink_to(path)
    assert read_of(str(tmp_path / "link.tar")) == FILES


def test_a_tar_that_has_changed_is_read_anew_and_leaves_one_index(tmp_path: Path, cache: Path) -> None:
    path = make_tar(tmp_path / "s.tar", {"000.txt": b"old"})
    before = os.stat(path)
    assert read_of(path) == {"000.txt": b"old"}
    other = make_tar(tmp_path / "other.tar", {"001.txt": b"new"})
    os.replace(other, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same path, size and mtime
    assert os.stat(path).st_size == before.st_size
    assert read_of(path) == {"001.txt": b"new"}
    assert len(list(cache.rglob("*"))) == 2  # a folder, and one index in it


@pytest.mark.parametrize("harm", ["cut", "empty", "other"])
def test_a_damaged_index_is_rebuilt(harm: str, tmp_path: Path, cache: Path) -> None:
    path = make_tar(tmp_path / "s.tar", FILES)
    assert read_of(path) == FILES
    index = next(cache.rglob("*.parquet"))
    sound = index.read_bytes()
    content = bytearray(sound)
    if harm == "cut":
        del content[len(content) // 2 :]
    elif harm == "empty":
        content.clear()
    else:
        pq.write_table(pq.read_table(index).select(["name"]), index)
        content[:] = index.read_bytes()
    index.write_bytes(content)
    assert read_of(path) == FILES
    assert index.read_bytes() == sound


def test_every_flipped_bit_of_an_index_is_harmless(tmp_path: Path, cache: Path) -> None:
    path = make_tar(tmp_path / "s.tar", {"000.txt": b"a"})
    assert read_of(path) == {"000.txt": b"a"}
    index = next(cache.rglob("*.parquet"))
    sound = index.read_bytes()
    for place in range(len(sound)):
        index.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        assert read_of(path) == {"000.txt": b"a"}, place


def test_without_a_place_for_it_the_tar_is_read_each_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tar(tmp_path / "s.tar", FILES)
    cache.write_bytes(b"a file where the folder should be")
    assert read_of(path) == FILES
    monkeypatch.delenv("CLIP_DISTILL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert read_of(path) == FILES


def test_a_tar_behind_a_url_has_an_index_where_the_url_tells_of_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/test-index/s.tar", Path(make_tar(tmp_path / "s.tar", FILES)).read_bytes())
    first = list(members("memory://test-index/s.tar"))
    info = memory.info("/test-index/s.tar")
    with monkeypatch.context() as patch:
        forbid_walking(patch)
        assert list(members("memory://test-index/s.tar")) == first
    memory.pipe("/test-index/s.tar", Path(make_tar(tmp_path / "t.tar", {"1.txt": b"b"})).read_bytes())
    assert [member.name for member in members("memory://test-index/s.tar")] == ["1.txt"]
    monkeypatch.setattr(type(memory), "info", lambda self, path: {key: info[key] for key in ("name", "size", "type")})
    forbid_walking(monkeypatch)
    with pytest.raises(AssertionError, match="was read"):
        list(members("memory://test-index/s.tar"))


def test_a_scan_gives_the_same_from_the_index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar(tmp_path / "s.tar", FILES | {"001.png": b"x", "001.json": b'{"caption": "c"}', "002.json": b"{"})
    first = scan(None, Sources(train_images=path))
    forbid_walking(monkeypatch)
    again = scan(None, Sources(train_images=path))
    assert again.train.images.equals(first.train.images) and len(first.train.images) == 2
    assert again.train.captions.equals(first.train.captions)
    assert again.report.lines() == first.report.lines()


def test_half_a_tar_leaves_no_index(tmp_path: Path, cache: Path) -> None:
    path = Path(make_tar(tmp_path / "s.tar", {f"{number}.txt": bytes(2000) for number in range(9)}))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="expected a whole, uncompressed tar file"):
        list(members(str(path)))
    assert not list(cache.rglob("*.parquet"))
