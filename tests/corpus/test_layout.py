from __future__ import annotations

import io
import json
import shutil
import tarfile
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.compute as pc
import pytest
from PIL import Image

from clip_distill.corpus.layout import Sources, scan
from clip_distill.pixels.photos import read_image
from clip_distill.system import paths
from clip_distill.system.paths import expand_braces

FLICKR8K = Path(__file__).parents[2] / ".." / "shared" / "flickr8k"


def jpeg(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, colour, colour)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, content: bytes = jpeg()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def coco(captions: list[tuple[str, str]]) -> bytes:
    names = sorted({name for name, _ in captions})
    annotations = [{"image_id": names.index(name), "caption": caption} for name, caption in captions]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": annotations}).encode()


def make_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def ids(table: Any) -> list[str]:
    found: list[str] = table.column("id").to_pylist()
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The documented folder, in small."""
    root = tmp_path / "data"
    for name in ("b.jpg", "a.PNG", "狗.jpeg", ".hidden.jpg", "notes.txt", "nested/c.jpg"):
        write(root / "image" / name)
    train = [("b.jpg", "one"), ("b.jpg", "two"), ("狗.jpeg", "一只狗"), ("b.jpg", " "), ("gone.jpg", "gone")]
    write(root / "COCO/annotations/captions_train2017.json", coco(train))
    write(root / "CC/Train_GCC-training.tsv", b'a "sign\thttp://x/1.jpg\none\thttp://x/2.jpg\n')
    write(root / "COCO/val2017/v1.jpg")
    write(root / "COCO/val2017/v2.jpg")
    val = [("v1.jpg", f"caption {number}") for number in range(5)] + [("v1.jpg", "caption 0"), ("gone.jpg", "gone")]
    write(root / "COCO/annotations/captions_val2017.json", coco(val))
    return root


def test_the_documented_folder(data: Path) -> None:
    corpus = scan(str(data))
    train, val = corpus.train, corpus.val
    assert ids(train.images) == ["image/a.PNG", "image/b.jpg", "image/狗.jpeg"]
    assert read_image(*train.images.slice(2).select(["path", "offset", "size"]).to_pylist()[0].values()).size == (8, 8)
    assert [str(kind) for kind in train.images.schema.types] == ["large_string", "large_string", "int64", "int64"]
    assert [str(kind) for kind in train.captions.schema.types] == ["large_string", "large_string"]
    assert train.captions.to_pylist() == [
        {"text": "one", "image_id": "image/b.jpg"},
        {"text": "two", "image_id": "image/b.jpg"},
        {"text": "一只狗", "image_id": "image/狗.jpeg"},
        {"text": "gone", "image_id": None},
        {"text": 'a "sign', "image_id": None},
        {"text": "one", "image_id": None},
    ]
    assert ids(val.images) == ["val2017/v1.jpg", "val2017/v2.jpg"]
    assert pc.value_counts(val.captions.column("image_id")).to_pylist() == [
        {"values": "val2017/v1.jpg", "counts": 6},
        {"values": None, "counts": 1},
    ]


def test_the_report_counts_everything(data: Path) -> None:
    report = scan(str(data)).report
    assert report.train.skipped_files.counts == {
        "hidden": 1,
        "not an image by its extension": 1,
        "folder inside a folder of photos; read with --sources.recursive true": 1,
    }
    assert report.train.skipped_captions.counts == {"empty caption": 1}
    assert (report.train.images, report.train.captions, report.train.duplicates) == (3, 6, 1)
    assert (report.train.captions_without_photo, report.train.photos_without_captions) == (1, 1)
    assert (report.val.images, report.val.captions, report.val.duplicates) == (2, 7, 1)
    assert (report.val.captions_without_photo, report.val.photos_without_captions) == (1, 1)
    text = "\n".join(report.lines())
    assert "train: 3 images\n" in text and "val: 7 captions (1 duplicates)\n" in text
    assert "skipped 1: hidden (first: " in text and ".hidden.jpg)" in text
    assert "1 captions of a photo that is not there" in text and "1 photos without captions" in text
    assert json.loads(json.dumps(report.as_dict()))["train"]["skipped_captions"]["counts"] == {"empty caption": 1}


def test_moving_the_folder_keeps_all_ids(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scan(str(data))
    moved = Path(shutil.move(data, tmp_path / "别处 elsewhere"))
    monkeypatch.chdir(moved)
    for place in (str(moved), str(moved) + "/", ".", "../别处 elsewhere"):
        after = scan(place)
        for split in ("train", "val"):
            assert ids(getattr(after, split).images) == ids(getattr(before, split).images)
            assert getattr(after, split).captions.equals(getattr(before, split).captions)


def test_ids_are_unicode_nfc_and_the_path_is_as_on_disk(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café.jpg")
    write(tmp_path / "image" / decomposed)
    write(tmp_path / "COCO/annotations/captions_train2017.json", coco([(decomposed, "x")]))
    train = scan(str(tmp_path)).train
    assert ids(train.images) == [unicodedata.normalize("NFC", "image/café.jpg")]
    assert train.captions.column("image_id").to_pylist() == ids(train.images)
    assert train.images.column("path").to_pylist() == [str(tmp_path / "image" / decomposed)]


def test_image_and_images_are_both_read(data: Path) -> None:
    write(data / "images/b.jpg")
    corpus = scan(str(data))
    assert ids(corpus.train.images)[-2:] == ["image/狗.jpeg", "images/b.jpg"]
    assert (
        corpus.report.train.notes
        and "photos from 2 places" in corpus.report.lines()[-1 - len(corpus.report.val.lines("val"))]
    )
    # two photos are called b.jpg now, and nothing says which one is meant
    assert corpus.train.captions.column("image_id").to_pylist()[:2] == [None, None]
    shutil.rmtree(data / "images")
    (data / "images").symlink_to(data / "image")
    assert ids(scan(str(data)).train.images) == ["image/a.PNG", "image/b.jpg", "image/狗.jpeg"]


def test_nested_folders_are_read_when_asked(data: Path) -> None:
    (data / "image/nested/loop").symlink_to(data / "image")
    corpus = scan(str(data), Sources(recursive=True))
    assert ids(corpus.train.images) == ["image/a.PNG", "image/b.jpg", "image/nested/c.jpg", "image/狗.jpeg"]
    assert corpus.report.train.skipped_files.counts["folder that was read already, under another name"] == 1


def test_a_folder_of_two_names_is_read_under_the_first_whatever_the_disks_order(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "image/b").mkdir()
    (data / "image/b/photo.jpg").write_bytes(b"photo")
    for name in "ac":
        (data / f"image/{name}").symlink_to(data / "image/b")
    listed, found = paths.entries, []
    for backwards in (False, True):
        order = partial(sorted, reverse=backwards)
        monkeypatch.setattr(paths, "entries", lambda folder, order=order: order(listed(folder)))
        found.append(ids(scan(str(data), Sources(recursive=True)).train.images))
    assert found[0] == found[1] and "image/a/photo.jpg" in found[0]


def test_files_that_are_no_photos_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image/broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "image").joinpath("bad\udcff.jpg").write_bytes(jpeg())
    corpus = scan(str(tmp_path))
    assert corpus.report.train.skipped_files.counts == {"broken link": 1, "file name is not UTF-8": 1}
    assert "bad\\udcff.jpg" in "\n".join(corpus.report.lines())
    with pytest.raises(FileNotFoundError, match="(?s)expected photos.*image and .*skipped 1: broken link"):
        corpus.train.require_images()


def test_missing_parts_are_reported_and_an_error_only_when_asked_for(data: Path) -> None:
    shutil.rmtree(data / "COCO")
    (data / "CC/Train_GCC-training.tsv").unlink()
    corpus = scan(str(data))
    assert corpus.train.require_images().num_rows == 3
    with pytest.raises(FileNotFoundError) as error:
        corpus.train.require_captions()
    for name in ("COCO/annotations/captions_train2017.json", "CC/Train_GCC-training.tsv"):
        assert str(data / name) in str(error.value)
        assert str(data / name) in corpus.report.train.missing
    with pytest.raises(FileNotFoundError, match="COCO/val2017; if they lie elsewhere, pass --sources.val_images"):
        corpus.val.require_images()
    with pytest.raises(FileNotFoundError, match="captions_val2017.json"):
        corpus.val.require_captions()
    shutil.rmtree(data / "image")
    assert f"  missing: {data}/image or {data}/images" in scan(str(data)).report.lines()


def test_places_that_were_named_must_exist(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data .*nowhere: expected a folder, found nothing there"):
        scan(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="expected a file or a folder, found nothing there"):
        scan(str(data), Sources(train_images=[str(tmp_path / "nowhere")]))
    with pytest.raises(FileNotFoundError, match=r"s-1.tar \(from .*s-\{0..1\}.tar\)"):
        make_shard(tmp_path / "s-0.tar", {"0.jpg": jpeg()})
        scan(None, Sources(train_images=[str(tmp_path / "s-{0..1}.tar")]))
    with pytest.raises(ValueError, match="notes.txt: expected a folder of photos"):
        scan(None, Sources(train_images=[str(data / "image/notes.txt")]))
    with pytest.raises(FileNotFoundError, match="pass --data or --sources.train_images"):
        scan(None).train.require_images()


def test_sources_override_their_part_only(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine/b.jpg")
    write(tmp_path / "mine.csv", b"image,text\nb.jpg,mine\n")
    sources = Sources(train_images=str(tmp_path / "mine"), train_captions=[str(tmp_path / "mine.csv")])
    corpus = scan(str(data), sources)
    assert ids(corpus.train.images) == ["mine/b.jpg"]
    assert corpus.train.captions.to_pylist() == [{"text": "mine", "image_id": "mine/b.jpg"}]
    assert ids(corpus.val.images) == ["val2017/v1.jpg", "val2017/v2.jpg"]


def test_photos_by_pattern(data: Path) -> None:
    corpus = scan(None, Sources(train_images=[str(data / "image/*.{jpg,jpeg}"), str(data / "image/b.jpg")]))
    assert ids(corpus.train.images) == ["image/b.jpg", "image/狗.jpeg"]


def test_two_photos_of_one_id_are_an_error(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        write(tmp_path / parent / "image/a.jpg")
    with pytest.raises(ValueError, match="two photos have one id, 'image/a.jpg': .*x/image/a.jpg and .*y/image/a.jpg"):
        scan(None, Sources(train_images=[str(tmp_path / "x/image"), str(tmp_path / "y/image")]))


def test_shards_give_photos_by_place_and_their_captions(tmp_path: Path) -> None:
    for shard in range(2):
        members = {"000.jpg": jpeg(50 * shard), "000.txt": f"shard {shard}".encode(), "001.txt": b"no photo"}
        make_shard(tmp_path / f"cc-00{shard}.tar", members | {"sub/002.PNG": jpeg(255), "sub/002.seg.png": b"mask"})
    corpus = scan(None, Sources(train_images=[str(tmp_path / "cc-{000..001}.tar")]))
    train = corpus.train
    assert ids(train.images) == [f"cc-00{shard}.tar/{key}" for shard in range(2) for key in ("000", "sub/002")]
    pixels = [read_image(row["path"], row["offset"], row["size"]).getpixel((4, 4)) for row in train.images.to_pylist()]
    assert pixels == [(0, 0, 0), (255, 255, 255), (50, 50, 50), (255, 255, 255)]
    assert train.captions.to_pylist() == [
        {"text": "shard 0", "image_id": "cc-000.tar/000"},
        {"text": "no photo", "image_id": None},
        {"text": "shard 1", "image_id": "cc-001.tar/000"},
        {"text": "no photo", "image_id": None},
    ]
    assert corpus.report.train.skipped_files.counts == {"sample without a photo (KEY.jpg, KEY.png, …)": 2}


def test_a_remote_folder_reads_like_a_local_one(data: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(data), "/test-layout/data", recursive=True)
    make_shard(data / "s.tar", {"0.jpg": jpeg(9)})
    memory.put(str(data / "s.tar"), "/test-layout/s.tar")
    local, remote = scan(str(data)), scan("memory://test-layout/data")
    for split in ("train", "val"):
        assert ids(getattr(remote, split).images) == ids(getattr(local, split).images)
        assert getattr(remote, split).captions.equals(getattr(local, split).captions)
    row = remote.train.images.to_pylist()[2]
    assert row["path"] == "memory:///test-layout/data/image/狗.jpeg" and read_image(row["path"]).size == (8, 8)
    shards = scan(None, Sources(train_images="memory://test-layout/*.tar")).train.images.to_pylist()
    assert read_image(shards[0]["path"], shards[0]["offset"], shards[0]["size"]).getpixel((0, 0)) == (9, 9, 9)
    deep = scan("memory://test-layout/data", Sources(recursive=True))
    assert "image/nested/c.jpg" in ids(deep.train.images)


def test_more_rows_than_are_held_at_a_time_stay_in_order(tmp_path: Path) -> None:
    count = 70_000
    write(tmp_path / "CC/Train_GCC-training.tsv", b"".join(b"caption %d\turl\n" % number for number in range(count)))
    captions = scan(str(tmp_path)).train.captions
    assert captions.column("text").to_pylist() == [f"caption {number}" for number in range(count)]


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("s-{08..11}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("{plain}.tar") == ["{plain}.tar"]


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="Flickr8k is not at ../shared/flickr8k")
def test_flickr8k_is_found_whole() -> None:
    corpus = scan(str(FLICKR8K))
    assert (corpus.train.images.num_rows, corpus.train.captions.num_rows) == (6000, 30_000)
    assert (corpus.val.images.num_rows, corpus.val.captions.num_rows) == (1000, 5000)
    assert corpus.train.captions.column("image_id").null_count == 12_000
    assert set(pc.value_counts(corpus.val.captions.column("image_id")).field("counts").to_pylist()) == {5}
    assert not corpus.report.train.skipped_files.counts and not corpus.report.val.skipped_captions.counts
    assert corpus.report.train.missing == [] and corpus.report.train.photos_without_captions == 0
