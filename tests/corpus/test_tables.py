"""Photos in tables are read as the bytes that were put in."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_distill.corpus.layout import Sources, scan
from clip_distill.corpus.report import Skips
from clip_distill.corpus.tables import table_images
from clip_distill.pixels.photos import read_bytes_of


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + shade % 3, 8), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


PHOTOS = [png(shade) for shade in range(150)]
RECORDS: list[Any] = [{"bytes": photo, "path": f"{i}.png"} for i, photo in enumerate(PHOTOS)]


def table(photos: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    texts = [[f"photo {i}", f"number {i}"] for i in range(len(photos))]
    return pa.table({"label": [0] * len(photos), "image": pa.array(photos, kind), "caption": texts})


def save_to_disk(folder: Path, rows: pa.Table, shards: int = 2, photos_a_batch: int = 20) -> Path:
    """What `datasets.Dataset.save_to_disk` writes (datasets 4, looked at in its files)."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    each = -(-len(rows) // shards)
    for i, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows.slice(i * each, each), max_chunksize=photos_a_batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def contents(images: pa.Table) -> list[bytes]:
    return [read_bytes_of(row["path"], row["offset"], row["size"]) for row in images.to_pylist()]


@pytest.mark.parametrize("kind", [None, pa.binary(), pa.large_binary()], ids=["record", "binary", "large"])
def test_parquet(kind: pa.DataType | None, tmp_path: Path) -> None:
    rows = table(RECORDS if kind is None else PHOTOS, kind)
    pq.write_table(rows, tmp_path / "photos.parquet", row_group_size=70, compression="zstd")
    split = scan(None, Sources(train_images=str(tmp_path / "photos.parquet"))).train
    assert contents(split.images) == PHOTOS
    assert split.images.column("id")[7].as_py() == "photos.parquet/00000007"
    assert split.captions.slice(14, 2).to_pylist() == [
        {"text": "photo 7", "image_id": "photos.parquet/00000007"},
        {"text": "number 7", "image_id": "photos.parquet/00000007"},
    ]


def test_a_changed_parquet_file_is_unpacked_anew(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    pq.write_table(table(RECORDS[:10]), path)
    first = list(table_images(str(path), Skips()))
    made = Path(first[0][1]).stat().st_mtime_ns
    assert list(table_images(str(path), Skips())) == first
    assert Path(first[0][1]).stat().st_mtime_ns == made, "the copy is used again"
    pq.write_table(table(RECORDS[10:30]), path)
    assert [read_bytes_of(*row[1:]) for row in table_images(str(path), Skips())] == PHOTOS[10:30]


def test_a_folder_of_parquet_files_is_all_of_them(tmp_path: Path) -> None:
    for i in range(2):
        pq.write_table(table(RECORDS[i * 5 : i * 5 + 5]), tmp_path / f"train-{i}.parquet")
    split = scan(None, Sources(train_images=str(tmp_path))).train
    assert contents(split.images) == PHOTOS[:10]
    assert len(split.captions) == 20 and not split.captions.column("image_id").null_count


@pytest.mark.parametrize("indexed", [False, True], ids=["stream", "file"])
def test_arrow_is_read_in_place(indexed: bool, tmp_path: Path) -> None:
    rows = table(RECORDS)
    path = str(tmp_path / "photos.arrow")
    with (pa.ipc.new_file if indexed else pa.ipc.new_stream)(path, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=40)
    found = list(table_images(path, Skips()))
    assert {row[1] for row in found} == {path}
    assert [read_bytes_of(*row[1:]) for row in found] == PHOTOS


def test_a_saved_dataset(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "mine", table(RECORDS))
    split = scan(None, Sources(train_images=str(folder))).train
    assert contents(split.images) == PHOTOS
    assert split.images.column("id")[75].as_py() == "mine/data-00001-of-00002.arrow/00000000"
    assert split.captions.slice(150, 1).to_pylist()[0]["text"] == "photo 75"
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ValueError, match=re.escape(f"found 2. Give {tmp_path}/train or {tmp_path}/test")):
        scan(None, Sources(train_images=str(tmp_path)))


def test_rows_without_bytes(tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(PHOTOS[3])
    records = [RECORDS[0], None, {"bytes": None, "path": str(tmp_path / "here.png")}, {"bytes": None, "path": "gone"}]
    rows = table(records, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    split = scan(None, Sources(train_images=str(save_to_disk(tmp_path / "mine", rows, shards=1))))
    assert contents(split.train.images) == [PHOTOS[0], PHOTOS[3]]
    assert split.report.train.skipped_files.counts == {"row without a photo's bytes": 2}
    assert split.report.train.captions_without_photo == 4


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"], "url": ["b"]}), tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match="expected a column of photos .* found caption: string, url: string"):
        scan(None, Sources(train_images=str(tmp_path / "texts.parquet")))
    for name in ("broken.parquet", "broken.arrow"):
        (tmp_path / name).write_bytes(b"neither")
        with pytest.raises(ValueError, match="expected a"):
            scan(None, Sources(train_images=str(tmp_path / name)))


def test_a_table_behind_a_url(tmp_path: Path) -> None:
    pq.write_table(table(RECORDS[:4]), tmp_path / "photos.parquet")
    with fsspec.open("memory://bucket/photos.parquet", "wb") as file:
        file.write((tmp_path / "photos.parquet").read_bytes())
    split = scan(None, Sources(train_images="memory://bucket/photos.parquet")).train
    assert contents(split.images) == PHOTOS[:4]
    assert len(split.captions) == 8
