"""`clip-distill embed` on small real files: what the teacher saw, what was skipped, and what a rerun does."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clip_distill.batches.datasets import Images
from clip_distill.cli import main as cli
from clip_distill.corpus.layout import scan
from clip_distill.pixels.views import AUGMENTATIONS, Views, normalise
from clip_distill.store.build import Part
from clip_distill.store.embed import Runner, embed_texts
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import load_tokenizer
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec

CAPTIONS = ["a dog", "two children in the snow with a very red ball", "", "grass", "a dog runs " * 40]
Contents = Callable[[Path], dict[str, bytes]]


def embed(data: Path, teacher: str, store: Path, *options: str) -> None:
    base = ["--data", str(data), "--teacher", teacher, "--store", str(store), "--workers", "0", "--device", "cpu"]
    cli.main(["embed", *base, *options])


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_data`, to change."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.mark.parametrize("augment", sorted(AUGMENTATIONS.keys() - {"none"}))
def test_the_loader_rebuilds_the_pixels_that_the_teacher_saw(
    augment: str, tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    options = ["--tower", "image", "--split", "train", "--views", "3", "--augment", augment, "--seed", "5"]
    embed(tiny_data, tiny_teacher, tmp_path, *options)
    store = open_table(tmp_path, "image", "train")
    spec, module = load_teacher(tiny_teacher, "image")
    photos = scan(str(tiny_data)).train.images
    views = Views(spec.preprocess, store.manifest.augment, store.manifest.seed)
    dataset = Images(photos, views, store, store.find(photos.column("id")))
    batch = dataset[np.array([(row, view) for row in (5, 0, 23) for view in (2, 0, 1)])]
    with torch.inference_mode():
        rebuilt = module(normalise(batch.inputs, spec.preprocess))
    torch.testing.assert_close(rebuilt, batch.target, rtol=2**-11 * 1.01, atol=2e-6)
    assert (store.all_embeddings(0) != store.all_embeddings(1)).any(axis=1).all()


def test_captions_are_embedded_once_each(data: Path, tiny_teacher: str, tmp_path: Path) -> None:
    tsv = data / "CC/Train_GCC-training.tsv"
    tsv.write_text(tsv.read_text(encoding="utf-8") * 2, encoding="utf-8")
    embed(data, tiny_teacher, tmp_path / "store", "--tower", "text", "--split", "train")
    captions = scan(str(data)).train.captions.column("text")
    store = open_table(tmp_path / "store", "text", "train")
    assert store.ids.to_pylist() == captions.unique().to_pylist()
    assert len(store) < len(captions)


@pytest.mark.parametrize("causal", [True, False])
def test_captions_cut_to_their_length_give_the_embeddings_of_padded_ones(causal: bool) -> None:
    tokenizer = TokenizerSpec("clip", context_length=77, vocab_size=49408)
    cfg = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    spec = TowerSpec("text", 16, cfg | ({} if causal else {"no_causal_mask": True}), tokenizer=tokenizer.as_dict())
    torch.manual_seed(0)
    module = spec.build().eval()
    widths: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    texts = pa.table({"id": CAPTIONS})
    runner = Runner(spec, module, torch.device("cpu"), batch_size=2)
    [(_, shard)] = embed_texts(runner, texts, [Part(0, 0, len(CAPTIONS))], range(1), "captions")
    assert widths == ([3, 12, 77] if causal else [77, 77, 77])
    with torch.inference_mode():
        padded = module(load_tokenizer(tokenizer)(CAPTIONS)).numpy()
    assert np.abs(shard.views[0] - padded).max() <= 1e-5
    assert shard.ids == CAPTIONS


def test_broken_photos_are_skipped_counted_and_added_once_they_can_be_read(
    data: Path, tiny_teacher: str, tmp_path: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = sorted((data / "image").iterdir())
    photos[3].write_bytes(photos[3].read_bytes()[:400])
    photos[5].write_bytes(b"this is no photo")
    photos[23].write_bytes(b"")
    options = ["--tower", "image", "--split", "train", "--shard_rows", "8"]
    embed(data, tiny_teacher, tmp_path / "store", *options)
    store = open_table(tmp_path / "store", "image", "train")
    assert store.manifest.skipped == {"empty file": 1, "not an image": 1, "truncated": 1}
    assert len(store) == 21
    assert "1 skipped (truncated)" in capsys.readouterr().out
    before = contents(tmp_path / "store")
    embed(data, tiny_teacher, tmp_path / "store", *options)
    assert contents(tmp_path / "store") == before
    shutil.copy(photos[0], photos[5])
    embed(data, tiny_teacher, tmp_path / "store", *options)
    store = open_table(tmp_path / "store", "image", "train")
    assert (len(store), store.manifest.skipped) == (22, {"empty file": 1, "truncated": 1})
    rows = store.find([f"image/{photos[number].name}" for number in (0, 5)])
    assert rows.min() >= 0
    np.testing.assert_allclose(*store.embeddings(rows).astype(np.float32), rtol=2**-9, atol=1e-4)


@pytest.fixture
def other_photo(data: Path) -> tuple[Path, bytes]:
    """A photo of `data`, and another one's content in as many bytes."""
    photos = sorted((data / "image").iterdir(), key=lambda path: path.stat().st_size)
    smaller, photo = photos[0], photos[-1]
    content = smaller.read_bytes()
    return photo, content + bytes(photo.stat().st_size - len(content))  # what follows a photo's end is not looked at


def test_a_row_knows_its_photo_also_in_a_tar(data: Path, tiny_teacher: str, tmp_path: Path) -> None:
    options = ["--tower", "image", "--split", "train"]
    embed(data, tiny_teacher, tmp_path / "s", *options)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in sorted((data / "image").iterdir()):
            tar.add(path, path.name)
    tar_options = ["--sources.train_images", f"[{tmp_path / 'photos.tar'}]"]
    embed(data, tiny_teacher, tmp_path / "tar", *options, *tar_options)
    found = open_table(tmp_path / "s", "image", "train")
    expected = [(data / id).read_bytes() for id in found.ids.to_pylist()]
    digests = [int.from_bytes(hashlib.blake2b(content).digest()[:8], "little") for content in expected]
    assert found.photos(np.arange(24)).to_pydict() == {"digest": digests, "bytes": list(map(len, expected))}
    in_tar = open_table(tmp_path / "tar", "image", "train").photos(np.arange(24)).column("digest").to_pylist()
    assert len(set(digests)) > 1 and sorted(in_tar) == sorted(digests)


def test_other_photos_under_the_same_ids_are_refused(
    data: Path, tiny_teacher: str, tmp_path: Path, other_photo: tuple[Path, bytes]
) -> None:
    photo, other = other_photo
    options = ["--tower", "image", "--split", "train", "--augment", "crop_flip", "--shard_rows", "8"]
    embed(data, tiny_teacher, tmp_path / "s", *options)
    before = open_table(tmp_path / "s", "image", "train").manifest
    photo.write_bytes(other)
    with pytest.raises(
        SystemExit, match=f"expected the photos of its rows, .* found 1 others .*{photo.name}: expected"
    ):
        embed(data, tiny_teacher, tmp_path / "s", *options, "--views", "2")
    photo.write_bytes(other[:-1])
    with pytest.raises(SystemExit, match=rf"1 photos are not those(.|\n)*{photo.name}: expected .* bytes, found"):
        embed(data, tiny_teacher, tmp_path / "s", *options)
    assert open_table(tmp_path / "s", "image", "train").manifest == before


def test_a_table_that_does_not_know_its_photos_is_not_checked(
    data: Path, tiny_teacher: str, tmp_path: Path, other_photo: tuple[Path, bytes]
) -> None:
    options = ["--tower", "image", "--split", "train", "--augment", "crop_flip"]
    embed(data, tiny_teacher, tmp_path / "s", *options)
    for path in (tmp_path / "s/image-train").glob("shard-*/rows.parquet"):
        pq.write_table(pq.read_table(path, columns=["id"]), path)  # as an import writes it
    photo, other = other_photo
    photo.write_bytes(other[:-1])
    shutil.copy(photo, data / "image/new.jpg")
    embed(data, tiny_teacher, tmp_path / "s", *options, "--views", "2")
    store = open_table(tmp_path / "s", "image", "train")
    assert (len(store), store.manifest.views) == (25, 2)
    assert store.photos(np.arange(25)).column("digest").null_count == 24
    photos = scan(str(data)).train.images
    views = Views(load_teacher(tiny_teacher, "image")[0].preprocess, "crop_flip", 0)
    dataset = Images(photos, views, store, store.find(photos.column("id")))
    assert len(dataset[np.array([(row, 1) for row in range(25)])].rows) == 25


def test_a_second_run_adds_new_photos_captions_and_views_alone(
    data: Path, tiny_teacher: str, tmp_path: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
) -> None:
    store, options = tmp_path / "store", ["--split", "train", "--shard_rows", "8", "--augment", "crop_flip"]
    embed(data, tiny_teacher, store, *options, "--views", "2")
    before = contents(store)
    photos = sorted((data / "image").iterdir())
    shutil.copy(photos[0], data / "image/new.jpg")
    with open(data / "CC/Train_GCC-training.tsv", "a", encoding="utf-8") as file:
        file.write("something new\thttps://example.invalid/new.jpg\n")
    embed(data, tiny_teacher, store, *options, "--views", "4")
    images, texts = (open_table(store, tower, "train") for tower in ("image", "text"))
    assert (len(images), images.manifest.views) == (25, 4)
    assert texts.ids[-1].as_py() == "something new"
    after = contents(store)
    assert all(after[name] == before[name] for name in before if name.endswith((".npy", "rows.parquet")))
    anew = tmp_path / "anew"
    embed(data, tiny_teacher, anew, *options, "--views", "4")
    at_once = open_table(anew, "image", "train")
    for view in range(4):
        theirs = at_once.embeddings(at_once.find(images.ids), view)
        np.testing.assert_allclose(images.all_embeddings(view), theirs, rtol=2**-10, atol=1e-5)
    capsys.readouterr()
    embed(data, tiny_teacher, store, *options, "--views", "1", "--tower", "image")
    assert "has 4 views already, and keeps them; 1 asked for" in capsys.readouterr().out
    assert contents(store) == after


def test_new_photos_get_the_augmented_views_of_the_others_when_plain_ones_are_asked_for(
    data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    options = ["--split", "train", "--tower", "image"]
    embed(data, tiny_teacher, tmp_path / "s", *options, "--views", "3", "--augment", "randaugment", "--seed", "2")
    first = sorted((data / "image").iterdir())[0]
    shutil.copy(first, data / "image/new.jpg")
    embed(data, tiny_teacher, tmp_path / "s", *options)
    photos = scan(str(data)).train.images
    store = open_table(tmp_path / "s", "image", "train")
    spec, module = load_teacher(tiny_teacher, "image")
    dataset = Images(photos, Views(spec.preprocess, "randaugment", 2), store, store.find(photos.column("id")))
    row = photos.column("id").to_pylist().index("image/new.jpg")
    batch = dataset[np.array([(row, view) for view in range(3)])]
    with torch.inference_mode():
        rebuilt = module(normalise(batch.inputs, spec.preprocess))
    torch.testing.assert_close(rebuilt, batch.target, rtol=2**-11 * 1.01, atol=2e-6)


def test_another_teacher_is_refused(
    tiny_data: Path, tiny_store: Path, tmp_path: Path, make_teacher: Callable[..., str]
) -> None:
    other = make_teacher(tmp_path / "other", custom_text=True, seed=1)
    with pytest.raises(SystemExit, match="weights_sha256: expected"):
        embed(tiny_data, other, tiny_store, "--split", "val", "--dtype", "float32")


def test_an_overflow_names_the_way_out(tiny_data: Path, tmp_path: Path, make_teacher: Callable[..., str]) -> None:
    name = make_teacher(tmp_path / "loud", custom_text=True)
    spec, module = load_teacher(name, "text")
    with torch.no_grad():
        module.text_projection *= 1e7
    [(part, shard)] = embed_texts(
        Runner(spec, module, torch.device("cpu")), pa.table({"id": ["a dog"]}), [Part(0, 0, 1)], range(1), "captions"
    )
    from clip_distill.store.write import write_shard

    with pytest.raises(StoreError, match="float16 can't hold .*--dtype float32"):
        write_shard(tmp_path, part.name, shard, "float16")
