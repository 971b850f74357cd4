"""An index follows its folders: new, changed, moved, deleted and unreadable photos."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_distill.model.encoder import Encoder
from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.index import Facts, File, Floats
from clip_distill.photosearch.update import KEEP, Progress, Unread, day_of, embedded, update
from clip_distill.system.errors import NotFound

Make = Callable[..., Engine]


def counts(state: Progress) -> tuple[int, int, int]:
    return state.added, state.moved, state.removed


def renewed(engine: Engine) -> tuple[int, int, int]:
    engine.state = Progress()
    return counts(engine.bring_up_to_date())


def test_photos_are_embedded_as_the_model_does(engine: Engine, photos: Path) -> None:
    contents = engine.index.contents()
    assert len(contents.paths) == 24 and counts(engine.state) == (24, 0, 0) and not engine.state.running
    expected = engine.model.encode_image(contents.paths)
    np.testing.assert_allclose(contents.matrix, expected, atol=2e-3)
    assert contents.sizes.tolist() == [[48, 40]] * 24


def test_what_changed_is_read_and_nothing_else(engine: Engine, photos: Path) -> None:
    assert renewed(engine) == (0, 0, 0)
    paths = sorted(photos.rglob("*.*"))
    (photos / "newer").mkdir()
    moved = photos / "newer/moved.png"
    contents = engine.index.contents()
    number = int(contents.ids[contents.paths.index(str(paths[0]))])
    paths[0].rename(moved)
    paths[1].unlink()
    Image.new("RGB", (30, 30), "red").save(paths[2])
    Image.new("RGB", (20, 30), "blue").save(photos / "added.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    assert renewed(engine) == (2, 1, 1)
    assert engine.index.path_of(number) == str(moved), "a moved photo keeps its number"
    assert engine.index.unread() == [(str(photos / "broken.jpg"), "not an image")]
    assert len(engine.library) == 24 and renewed(engine) == (0, 0, 0)
    (photos / "broken.jpg").unlink()
    assert renewed(engine) == (0, 0, 1) and engine.index.unread() == []


def test_a_file_of_the_same_size_is_not_a_moved_one(engine: Engine, photos: Path) -> None:
    path = sorted(photos.rglob("*.*"))[0]
    content = bytearray(path.read_bytes())
    path.unlink()
    content[-1] ^= 1
    (photos / "other.png").write_bytes(content)
    added, moved, removed = renewed(engine)
    assert moved == 0 and removed == 1 and added <= 1


def test_a_folder_that_is_not_there_deletes_nothing(engine: Engine, photos: Path) -> None:
    photos.rename(photos.with_name("unmounted"))
    with pytest.raises(NotFound, match="expected a folder of photos, found none there"):
        engine.bring_up_to_date()
    assert engine.index.count() == 24 and not engine.state.running


def test_an_empty_folder_may_be_an_unmounted_disk(photos: Path, make_engine: Make, tmp_path: Path) -> None:
    engine = make_engine(photos / "old", photos / "new")
    engine.bring_up_to_date()
    (photos / "new").rename(tmp_path / "aside")
    (photos / "new").mkdir()
    with pytest.raises(NotFound, match="the index has 16 of it, found none. Is its disk mounted"):
        engine.bring_up_to_date()
    assert engine.index.count() == 24
    engine.folders = [str(photos / "old")]
    assert renewed(engine) == (0, 0, 16), "a folder that is left out is forgotten"


def test_several_folders_are_one_library(photos: Path, make_engine: Make) -> None:
    engine = make_engine(photos / "old", photos / "new")
    engine.bring_up_to_date()
    assert engine.library.folders == [str(photos / "new"), str(photos / "old")]


def test_stopped_it_goes_on_where_it_was(photos: Path, make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_distill.photosearch.update.KEEP", 4)
    monkeypatch.setattr("clip_distill.photosearch.update.BATCH", 4)
    assert KEEP == 256
    engine = make_engine(photos)
    engine.stop.set()
    engine.bring_up_to_date()
    assert engine.index.count() == 4 and engine.state.total == 24
    engine.stop.clear()
    assert renewed(engine) == (20, 0, 0)


def test_orientation_is_left_alone_unless_asked_for(
    photos: Path, make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sideways = photos / "sideways.jpg"
    picture = Image.new("RGB", (60, 40), "white")
    picture.paste("black", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[274] = 6
    exif[306] = "2020:05:17 10:00:00"
    picture.save(sideways, quality=95, exif=exif)
    engine = make_engine(photos)
    engine.bring_up_to_date()
    contents = engine.index.contents()
    row = contents.paths.index(str(sideways))
    assert contents.sizes[row].tolist() == [40, 60] and contents.taken[row] == 20200517  # as it is shown
    as_it_lies, turned = engine.model.encode_image([picture, picture.rotate(-90, expand=True)])
    assert contents.matrix[row] @ as_it_lies > 0.99
    encoder = engine.model.encoder("image")
    monkeypatch.setattr(encoder, "preprocess", encoder.preprocess | {"exif": True})
    state = update(engine.index, engine.folders, encoder, Progress())
    assert state.total == 0, "what is there is not read again"
    os.utime(sideways)
    update(engine.index, engine.folders, encoder, Progress())
    again = engine.index.contents()
    assert again.matrix[row] @ turned > 0.99 and again.matrix[row] @ turned > again.matrix[row] @ as_it_lies


def test_days_of_photos_without_a_date_are_their_files() -> None:
    file = File("a", 1, int(datetime(2020, 9, 13, 12).timestamp()) * 10**9)  # noon where this runs, as days are
    assert day_of(Image.Exif(), file) == 20200913
    exif = Image.Exif()
    exif[306] = "    :  :     "
    assert day_of(exif, file) == 20200913


def test_a_photo_that_was_gone_for_a_moment_is_read_when_it_is_back(engine: Engine, photos: Path) -> None:
    path, away = photos / "lost.png", photos.with_name("lost.png")
    Image.new("RGB", (20, 20), "green").save(path)

    def meanwhile(files: Sequence[File], encoder: Encoder) -> Iterator[tuple[list[tuple[Facts, Floats]], list[Unread]]]:
        path.rename(away)
        yield from embedded(files, encoder)
        away.rename(path)

    engine.embed = meanwhile
    assert renewed(engine) == (0, 0, 0) and engine.index.unread() == [(str(path), "missing file")]
    engine.embed = None
    assert renewed(engine) == (1, 0, 0) and engine.index.unread() == []


def test_searches_go_on_meanwhile(engine: Engine, photos: Path) -> None:
    for number in range(8):
        Image.new("RGB", (20, 20 + number), "green").save(photos / f"green{number}.png")
    thread = threading.Thread(target=engine.bring_up_to_date)
    thread.start()
    while thread.is_alive():
        assert len(engine.ask("a green square", count=5)) == 5
    thread.join()
    assert len(engine.library) == 32


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp"])
def test_a_photo_is_as_wide_as_it_is_shown(photos: Path, make_engine: Make, name: str) -> None:
    exif = Image.Exif()
    exif[274] = 8
    Image.new("RGB", (60, 40), "white").save(photos / name, exif=exif)
    engine = make_engine(photos)
    engine.bring_up_to_date()
    contents = engine.index.contents()
    row = contents.paths.index(str(photos / name))
    assert contents.sizes[row].tolist() == [40, 60]
    assert Image.open(io.BytesIO(engine.thumbnail(int(contents.ids[row])))).size == (40, 60)
