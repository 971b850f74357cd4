"""`clip-distill store`: info, verify, and the way to clip-retrieval's folders and back."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_distill.cli import main as cli
from clip_distill.corpus.layout import scan
from clip_distill.store.ensemble import open_table
from clip_distill.system.files import read_json, write_json


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_store`, to damage."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def test_info_says_what_a_store_holds(
    store: Path, tiny_teacher: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "image-train").mkdir()
    write_json(store / "image-train/plan.json", {})
    manifest = read_json(store / "text-val/manifest.json")
    write_json(store / "text-val/manifest.json", manifest | {"skipped": {"truncated": 3}})
    cli.main(["store", "info", "--store", str(store)])
    out = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("┃│").split("│")] for line in out.replace("┃", "│").splitlines()]
    facts = {row[0]: row[1:] for row in cells if len(row) == 4}
    assert facts[""] == ["image-train", "image-val", "text-val"]
    assert facts["rows"] == ["unfinished", "8", "24"]
    assert facts["dim"] == ["", "32", "32"]
    assert facts["stored as"][1:] == ["float32", "float32"]
    assert facts["skipped"][1:] == ["none", "3 truncated"]
    assert facts["on disk"][1].endswith("MB")
    digest = open_table(store, "image", "val").manifest.teacher["weights_sha256"]
    assert tiny_teacher in out and digest in out


def test_verify_passes_what_is_as_written(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["store", "verify", "--store", str(store)])
    assert "2 tables, 6 files, all as written" in capsys.readouterr().out


def test_verify_finds_a_flipped_bit_a_missing_file_and_a_wrong_count(store: Path) -> None:
    def verify() -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["store", "verify", "--store", str(store)])
        assert ended.value.code not in (0, None)
        return str(ended.value.code)

    shard = store / "text-val/shard-00000"
    content = bytearray((shard / "view-000.npy").read_bytes())
    content[len(content) // 2] ^= 4
    (shard / "view-000.npy").write_bytes(content)
    assert "1 problems" in verify() and "view-000.npy has changed: expected SHA-256" in verify()
    (shard / "tokens.npy").unlink()
    assert "2 problems" in verify() and "tokens.npy is missing" in verify()
    manifest = read_json(store / "image-val/manifest.json")
    manifest["shards"][0]["rows"] = 7
    write_json(store / "image-val/manifest.json", manifest)
    message = verify()
    assert "manifest says 8 rows, its shards have 7" in message
    assert "rows.parquet: expected (7,), found (8,)" in message
    assert "view-000.npy: expected (7, 32, 'float32'), found (8, 32, 'float32')" in message


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    for verb in ("info", "verify"):
        with pytest.raises(SystemExit, match="expected a store, found none of its tables"):
            cli.main(["store", verb, "--store", str(tmp_path)])
    with pytest.raises(SystemExit, match="unknown verb 'check'"):
        cli.main(["store", "check"])


def test_an_export_is_a_clip_retrieval_folder_for_each_tower(store: Path, tmp_path: Path) -> None:
    options = ["--split", "val", "--rows_per_file", "7"]
    cli.main(["store", "export", "--store", str(store), "--out", str(tmp_path / "out"), *options])
    table = open_table(store, "text", "val")
    folder = tmp_path / "out/text"
    names = [path.name for path in sorted((folder / "text_emb").iterdir())]
    assert names == [f"text_emb_{number}.npy" for number in range(4)]
    parts = [np.load(folder / "text_emb" / name) for name in names]
    assert [len(part) for part in parts] == [7, 7, 7, 3]
    plain = table.all_embeddings()
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-6)
    metadata = [pq.read_table(path) for path in sorted((folder / "metadata").iterdir())]
    assert pa.concat_tables(metadata).to_pydict() == {"caption": table.ids.to_pylist()}
    assert pq.read_table(tmp_path / "out/image/metadata/metadata_0.parquet").column_names == ["image_path"]
    with pytest.raises(SystemExit, match="out/image exists"):
        cli.main(["store", "export", "--store", str(store), "--out", str(tmp_path / "out"), *options])


def test_with_data_an_export_has_a_row_for_each_caption_and_its_photo(
    store: Path, tiny_data: Path, tmp_path: Path
) -> None:
    options = ["--split", "val", "--normalise", "false", "--data", str(tiny_data)]
    cli.main(["store", "export", "--store", str(store), "--out", str(tmp_path / "out"), *options])
    metadata = pq.read_table(tmp_path / "out/metadata/metadata_0.parquet")
    captions = scan(str(tiny_data)).val.captions
    assert metadata.column("caption").to_pylist() == captions.column("text").to_pylist()
    assert metadata.column("image_path").to_pylist() == captions.column("image_id").to_pylist()
    images, texts = open_table(store, "image", "val"), open_table(store, "text", "val")
    for table, kind, column in ((images, "img_emb", "image_path"), (texts, "text_emb", "caption")):
        written = np.load(tmp_path / f"out/{kind}/{kind}_0.npy")
        np.testing.assert_array_equal(written, table.embeddings(table.find(metadata.column(column))))


def test_a_store_goes_out_and_comes_back_bit_for_bit(
    store: Path, tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    options = ["--split", "val", "--normalise", "false", "--data", str(tiny_data), "--rows_per_file", "10"]
    cli.main(["store", "export", "--store", str(store), "--out", str(tmp_path / "out"), *options])
    options = ["--folder", str(tmp_path / "out"), "--teacher", tiny_teacher, "--split", "val", "--shard_rows", "5"]
    cli.main(["store", "import", *options, "--store", str(tmp_path / "back")])
    cli.main(["store", "verify", "--store", str(tmp_path / "back")])
    for tower in ("image", "text"):
        before, after = open_table(store, tower, "val"), open_table(tmp_path / "back", tower, "val")
        assert after.ids.to_pylist() == before.ids.to_pylist()
        np.testing.assert_array_equal(after.all_embeddings(), before.all_embeddings())
        assert after.manifest.precision == "imported"
        assert after.manifest.teacher == before.manifest.teacher
    np.testing.assert_array_equal(after.tokens.flat, before.tokens.flat)
    np.testing.assert_array_equal(after.tokens.offsets, before.tokens.offsets)


def test_photos_of_another_program_are_found_in_the_data_by_name(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    embeddings = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float16)
    np.save(folder / "img_emb/img_emb_0.npy", embeddings)
    paths = ["/their/disk/000000000030.jpg", "/their/disk/lost.jpg", "/their/disk/000000000025.jpg"]
    pq.write_table(pa.table({"image_path": paths}), folder / "metadata/metadata_0.parquet")
    options = ["--folder", str(folder), "--teacher", tiny_teacher, "--split", "val", "--tower", "image"]
    cli.main(["store", "import", *options, "--store", str(tmp_path / "s"), "--data", str(tiny_data)])
    store = open_table(tmp_path / "s", "image", "val")
    assert store.ids.to_pylist() == ["val2017/000000000030.jpg", "val2017/000000000025.jpg"]
    np.testing.assert_array_equal(store.all_embeddings(), embeddings[[0, 2]])


@pytest.mark.parametrize(
    ("shape", "dtype", "rows", "column", "message"),
    [
        ((3, 16), "float16", 3, "caption", r"expected float16 or float32 \[N, 32\].*found float16 \[3, 16\]"),
        ((3, 32), "float64", 3, "caption", "found float64"),
        ((3, 32), "float32", 4, "caption", "expected a row for each of .* 4, found 3"),
        ((3, 32), "float32", 3, "text", "expected a column 'caption', found .'text'."),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    shape: tuple[int, int], dtype: str, rows: int, column: str, message: str, tiny_teacher: str, tmp_path: Path
) -> None:
    (tmp_path / "text_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    np.save(tmp_path / "text_emb/text_emb_0.npy", np.ones(shape, dtype))
    pq.write_table(pa.table({column: [str(row) for row in range(rows)]}), tmp_path / "metadata/metadata_0.parquet")
    options = ["--folder", str(tmp_path), "--teacher", tiny_teacher, "--tower", "text", "--store", str(tmp_path / "s")]
    with pytest.raises(SystemExit, match=message):
        cli.main(["store", "import", *options])
    with pytest.raises(SystemExit, match="img_emb_0.npy … and as many metadata(.|\n)*found 0 and 1"):
        cli.main(["store", "import", *options[:5], "image", *options[6:]])


def test_shards_are_exported_as_pairs_and_found_again_by_key(
    tiny_teacher: str, tiny_data: Path, tmp_path: Path
) -> None:
    photos = sorted((tiny_data / "COCO/val2017").iterdir())
    with tarfile.open(tmp_path / "cc-000.tar", "w") as tar:
        for number, photo in enumerate(photos):
            for name, content in (("jpg", photo.read_bytes()), ("txt", f"scene {number % 3}".encode())):
                member = tarfile.TarInfo(f"{number:03d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    data = ["--sources.train_images", str(tmp_path / "cc-000.tar")]
    made, out = str(tmp_path / "made"), tmp_path / "out"
    options = ["--teacher", tiny_teacher, "--split", "train", "--workers", "0", "--device", "cpu"]
    cli.main(["embed", *data, *options, "--store", made])
    cli.main(["store", "export", *data, "--store", made, "--out", str(out), "--normalise", "false"])
    metadata = pq.read_table(out / "metadata/metadata_0.parquet")
    assert metadata.column("image_path").to_pylist() == [f"cc-000.tar/{number:03d}" for number in range(8)]
    assert metadata.column("caption").to_pylist() == [f"scene {number % 3}" for number in range(8)]

    # as img2dataset's key, from which clip-retrieval makes image_path
    keys = pa.array([f"{number:03d}" for number in range(8)])
    pq.write_table(metadata.set_column(0, "image_path", keys), out / "metadata/metadata_0.parquet")
    options = ["--folder", str(out), "--teacher", tiny_teacher, "--tower", "image"]
    cli.main(["store", "import", *data, *options, "--store", str(tmp_path / "back")])
    before, after = (open_table(root, "image", "train") for root in (made, tmp_path / "back"))
    assert after.ids.to_pylist() == before.ids.to_pylist()
    np.testing.assert_array_equal(after.all_embeddings(), before.all_embeddings())
