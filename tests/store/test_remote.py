"""Stores behind URLs, on fsspec's memory and local file systems."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from clip_distill.cli import main as cli
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store
from clip_distill.store.verify import problems
from clip_distill.system.paths import listed_sizes
from clip_distill.system.remote import RemotePath, cache_folder, locate

ROOT = "memory://bucket/store"


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """An empty file system in memory, and a cache of its own."""
    monkeypatch.setenv("CLIP_DISTILL_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def local_of(system: fsspec.AbstractFileSystem, root: str) -> dict[str, bytes]:
    """Name → content; but for the ids of a plan that is over, which a bucket keeps."""
    paths = [path for path in system.find(root) if not path.endswith("plan-items.parquet")]
    return {path.removeprefix(root): bytes(system.cat_file(path)) for path in paths}


def test_a_remote_table_holds_the_files_of_a_local_one(
    synthetic: SimpleNamespace, tmp_path: Path, contents: object, bucket: fsspec.AbstractFileSystem
) -> None:
    local = synthetic.build(tmp_path / "local", 20, 4, 2, bad=("image/00003.jpg",))
    remote = synthetic.build(f"{ROOT}/image-train", 20, 4, 2, bad=("image/00003.jpg",))
    assert local_of(bucket, "/bucket/store/image-train/") == contents(tmp_path / "local")  # type: ignore[operator]
    assert isinstance(remote.folder, RemotePath)
    rows = np.random.default_rng(0).integers(19, size=50)
    np.testing.assert_array_equal(remote.embeddings(rows, rows % 2), local.embeddings(rows, rows % 2))
    assert open_table(ROOT, "image", "train").find(["image/00004.jpg"]).tolist() == [3]


def test_a_file_is_downloaded_once_and_only_if_it_is_read(synthetic: SimpleNamespace) -> None:
    synthetic.build(ROOT, 20, 4)
    store = Store(ROOT)
    store.embeddings(np.arange(8))
    cached = [path for path in cache_folder().rglob("*") if path.is_file() and "locks" not in path.parts]
    assert len(cached) == 2  # the embeddings of two shards
    fsspec.filesystem("memory").rm(ROOT, recursive=True)
    np.testing.assert_array_equal(Store.embeddings(store, np.arange(8))[0], store.embeddings(np.array([0]))[0])
    store = pickle.loads(pickle.dumps(store))  # opens its files anew
    assert store.embeddings(np.arange(8)).shape == (8, 8)  # from the cache
    with pytest.raises(FileNotFoundError):
        store.embeddings(np.arange(9))


def test_a_store_rebuilt_at_the_same_url_is_read_anew(synthetic: SimpleNamespace) -> None:
    synthetic.build(ROOT, 4, 4).embeddings(np.arange(4))
    fsspec.filesystem("memory").rm(ROOT, recursive=True)
    other = synthetic.manifest(dtype="float32")
    from clip_distill.store.build import build_table

    store = build_table(ROOT, other, synthetic.items(4), synthetic.embed_with(), 4)
    assert store is not None and store.embeddings(np.arange(4)).dtype == np.float32


def test_an_interrupted_upload_is_continued(
    synthetic: SimpleNamespace, tmp_path: Path, contents: object, bucket: fsspec.AbstractFileSystem
) -> None:
    class CutError(Exception):
        """A client's own kind of error."""

    plain = bucket.pipe_file
    left = 6

    def cut(path: str, value: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CutError("the connection ended")
        plain(path, value)

    bucket.pipe_file = cut
    try:
        with pytest.raises(StoreError, match="could not be reached: the connection ended.*run the same command again"):
            synthetic.build(ROOT, 20, 4)
    finally:
        del bucket.pipe_file
    with pytest.raises(StoreError, match="unfinished"):
        Store(ROOT)
    seen: list[str] = []
    synthetic.build(ROOT, 20, 4, seen=seen)
    assert len(seen) == 16  # one shard was complete, of another some files were there
    synthetic.build(tmp_path / "local", 20, 4)
    assert local_of(bucket, "/bucket/store/") == contents(tmp_path / "local")  # type: ignore[operator]


def test_rows_and_views_grow_remotely(synthetic: SimpleNamespace) -> None:
    synthetic.build(ROOT, 10, 4, 2)
    store = synthetic.build(ROOT, 15, 4, 3)
    assert (len(store), store.manifest.views) == (15, 3)
    expected = [synthetic.embedding(id, 2).astype(np.float16) for id in store.ids.to_pylist()]
    np.testing.assert_array_equal(store.all_embeddings(2), np.stack(expected))
    assert problems(store) == []


def test_a_damaged_download_is_refused(synthetic: SimpleNamespace, bucket: fsspec.AbstractFileSystem) -> None:
    store = synthetic.build(ROOT, 4, 4)
    path = "/bucket/store/shard-00000/view-000.npy"
    content = bytearray(bucket.cat_file(path))
    content[-1] ^= 1
    bucket.pipe_file(path, bytes(content))
    with pytest.raises(ValueError, match="view-000.npy: expected SHA-256 .*, found"):
        store.embeddings(np.arange(4))
    assert len(problems(store)) == 1


def test_a_file_url_is_a_folder_here(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    assert locate(f"file://{tmp_path}/a b") == tmp_path / "a b"
    assert len(synthetic.build(f"file://{tmp_path}/table", 5, 4)) == len(Store(tmp_path / "table")) == 5


def test_embed_and_store_verbs_take_urls(
    tiny_data: Path, tiny_teacher: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = ["--data", str(tiny_data), "--teacher", tiny_teacher, "--workers", "0", "--device", "cpu", "--split", "val"]
    cli.main(["embed", *base, "--store", ROOT])
    cli.main(["store", "verify", "--store", ROOT])
    assert "2 tables, 6 files, all as written" in capsys.readouterr().out
    cli.main(["store", "info", "--store", ROOT])
    assert "image-val" in capsys.readouterr().out
    cli.main(["store", "export", "--store", ROOT, "--split", "val", "--out", str(tmp_path / "out")])
    assert np.load(tmp_path / "out/text/text_emb/text_emb_0.npy").shape == (24, 32)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "recursive"])
def test_a_photo_of_another_size_behind_a_url_is_noticed_by_one_listing_a_folder(
    nested: bool,
    tiny_data: Path,
    tiny_teacher: str,
    bucket: fsspec.AbstractFileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = "/bucket/photos/a" if nested else "/bucket/photos"
    photos = [path.read_bytes() for path in sorted((tiny_data / "image").iterdir())]
    bucket.pipe({f"{folder}/{number:02d}.jpg": content for number, content in enumerate(photos)})
    command = ["embed", "--sources.train_images", "memory://bucket/photos", "--teacher", tiny_teacher, "--store", ROOT]
    command += ["--sources.recursive", "true", "--tower", "image", "--split", "train", "--workers", "0"]
    cli.main(command)
    before = local_of(bucket, "/bucket/store/")
    listed: list[str] = []
    plain = bucket.ls
    monkeypatch.setattr(bucket, "ls", lambda path, **options: listed.append(path) or plain(path, **options))
    cli.main(command)
    assert local_of(bucket, "/bucket/store/") == before
    assert listed.count(folder) <= 3  # to find the photos, and to see their sizes
    bucket.pipe(f"{folder}/07.jpg", photos[7] + b"\0")
    with pytest.raises(SystemExit, match=f"1 photos are not those(.|\n)*07.jpg: expected {len(photos[7]):,} bytes"):
        cli.main(command)


def test_a_web_server_says_no_sizes(tiny_data: Path) -> None:
    assert listed_sizes(f"file://{tiny_data}/image").keys() == {path.name for path in (tiny_data / "image").iterdir()}
    assert listed_sizes(f"file://{tiny_data}/nowhere") == listed_sizes("http://127.0.0.1:9/photos") == {}
