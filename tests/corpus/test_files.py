from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clip_distill.corpus.layout import Sources, scan


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_files_of_other_kinds_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").mkdir()
    for name in ("a.jpg", "b.HEIC", "c.nef", "d.txt", "e.tar"):
        (tmp_path / "image" / name).write_bytes(jpeg())
    monkeypatch.setattr("clip_distill.corpus.files.IMAGE_EXTENSIONS", frozenset([".jpg"]))
    corpus = scan(str(tmp_path))
    assert corpus.train.images.column("id").to_pylist() == ["image/a.jpg"]
    assert set(corpus.report.train.skipped_files.counts) == {
        "HEIC photo; pip install 'clip-distill[heif]' reads it",
        "RAW photo, which is not developed here; export it as JPEG",
        "not an image by its extension",
        ".tar in a folder of photos; name it by itself: --sources.train_images '[FOLDER/*.tar]'",
    }


def test_a_folder_of_photos_given_as_data_is_told_how_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} itself holds photos: pass --sources")):
        scan(str(tmp_path)).train.require_images()


def test_dotted_names_in_a_shard_are_told_with_a_way(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("holiday.v2.jpg", "plain.jpg", "lonely.txt"):
            (tmp_path / name).write_bytes(jpeg())
            tar.add(tmp_path / name, name)
    corpus = scan(None, Sources(train_images=str(tmp_path / "s.tar")))
    assert corpus.train.images.column("id").to_pylist() == ["s.tar/plain"]
    skips = corpus.report.train.skipped_files
    assert sorted(skips.counts.values()) == [1, 1]
    assert [where for reason, where in skips.examples.items() if "a_b.jpg" in reason] == ["s.tar/holiday.v2.jpg"]
