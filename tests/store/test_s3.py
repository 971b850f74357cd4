"""Data and store on S3: the real client against a server on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clip_distill.cli import main as cli
from clip_distill.pixels.photos import BadImage, read_bytes_of
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store

pytest.importorskip("s3fs", reason="needs the extra s3")
server = pytest.importorskip("moto.server", reason="needs an S3 server, moto, of the extra dev")

Contents = Callable[[Path], dict[str, bytes]]
Start = Callable[..., Any]  # of conftest.Child
WaitFor = Callable[[Callable[[], object]], None]
SECRETS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a running server."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A file system with an empty bucket, `bucket`; this process and those it starts find it as they would AWS."""
    import s3fs

    for name, value in SECRETS.items() | {("AWS_ENDPOINT_URL", address), ("CLIP_DISTILL_CACHE", str(tmp_path / "c"))}:
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    system.rm("bucket", recursive=True)


def files_of(s3: Any, folder: str) -> dict[str, bytes]:
    """Name → content; but for the ids of a plan that is over, which a bucket keeps."""
    s3.invalidate_cache()
    paths = [path for path in s3.find(folder) if not path.endswith("plan-items.parquet")]
    return {path.removeprefix(f"{folder}/"): s3.cat_file(path) for path in paths}


def embed_command(data: str | Path, teacher: str, store: str | Path) -> list[str]:
    return ["embed", "--data", str(data), "--teacher", teacher, "--store", str(store), "--device", "cpu"]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_embed_fit_and_evaluate_with_data_and_store_on_s3(
    tower: str,
    s3: Any,
    tiny_data: Path,
    tiny_teacher: str,
    tmp_path: Path,
    contents: Contents,
    capsys: pytest.CaptureFixture[str],
) -> None:
    s3.put(f"{tiny_data}/", "bucket/data/", recursive=True)
    options = ["--views", "2", "--augment", "crop_flip", "--shard_rows", "10"]
    cli.main([*embed_command("s3://bucket/data", tiny_teacher, "s3://bucket/store"), *options, "--workers", "2"])
    cli.main([*embed_command(tiny_data, tiny_teacher, tmp_path / "local"), *options, "--workers", "0"])
    assert files_of(s3, "bucket/store") == contents(tmp_path / "local")
    student = {
        "image": "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}",
        "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
    }
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    paths = ["--data", "s3://bucket/data", "--store", "s3://bucket/store"]
    fit = [
        "fit",
        "--preset",
        "none",
        "--tower",
        tower,
        *paths,
        "--student.options",
        student[tower],
        "--loader.workers",
        "2",
    ]
    cli.main([*fit, *trainer, "--out", str(tmp_path / "run")])
    capsys.readouterr()
    cli.main(["evaluate", *paths, f"--{tower}_student", str(tmp_path / "run"), "--device", "cpu"])
    assert "8 photos, 24 captions (val)" in capsys.readouterr().out
    cli.main(["store", "verify", "--store", "s3://bucket/store"])
    assert "4 tables" in capsys.readouterr().out


def test_photos_in_a_tar_on_s3_are_read_by_one_request_each(
    s3: Any, tiny_data: Path, tiny_teacher: str, tmp_path: Path, contents: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in sorted((tiny_data / "image").iterdir()):
            tar.add(path, path.name)
        tar.addfile(tarfile.TarInfo("empty.jpg"))
    s3.put(str(tmp_path / "photos.tar"), "bucket/photos.tar")
    options = ["--teacher", tiny_teacher, "--tower", "image", "--split", "train", "--device", "cpu", "--workers", "0"]
    with caplog.at_level("INFO", "werkzeug"):
        cli.main(
            ["embed", "--sources.train_images", "[s3://bucket/photos.tar]", "--store", "s3://bucket/store", *options]
        )
    asked = [record.getMessage() for record in caplog.records if "/bucket/photos.tar HTTP" in record.getMessage()]
    assert sum('"GET' in line for line in asked) <= 24 + 2  # and the list of the tar's members
    cli.main(
        ["embed", "--sources.train_images", f"[{tmp_path / 'photos.tar'}]", "--store", str(tmp_path / "s"), *options]
    )
    assert files_of(s3, "bucket/store") == contents(tmp_path / "s")
    assert open_table("s3://bucket/store", "image", "train").manifest.skipped == {"empty file": 1}


def test_whole_photos_on_s3_are_read_by_one_request_each(
    s3: Any, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo = next((tiny_data / "image").iterdir())
    s3.pipe({"bucket/a.jpg": photo.read_bytes(), "bucket/empty.jpg": b""})
    type(s3).clear_instance_cache()  # as in a worker process, which has not listed the folder
    caplog.clear()
    with caplog.at_level("INFO", "werkzeug"):
        assert read_bytes_of("s3://bucket/a.jpg") == photo.read_bytes()
    asked = [record.getMessage() for record in caplog.records]
    assert len(asked) == 1 and "GET /bucket/a.jpg" in asked[0]
    with pytest.raises(BadImage, match="empty file"):
        read_bytes_of("s3://bucket/empty.jpg")
    with pytest.raises(BadImage, match="missing file"):
        read_bytes_of("s3://bucket/none.jpg")


def test_a_killed_upload_is_continued(
    s3: Any, tiny_data: Path, tiny_teacher: str, tmp_path: Path, contents: Contents, wait_for: WaitFor
) -> None:
    options = ["--tower", "image", "--split", "train", "--shard_rows", "2", "--workers", "0"]
    command = embed_command(tiny_data, tiny_teacher, "s3://bucket/store") + options
    running = subprocess.Popen([sys.executable, "-m", "clip_distill", *command], stderr=subprocess.DEVNULL)
    wait_for(lambda: s3.invalidate_cache() or s3.exists("bucket/store/image-train/shard-00002/shard.json"))
    running.kill()
    assert running.wait() == -signal.SIGKILL
    with pytest.raises(StoreError, match="unfinished"):
        Store("s3://bucket/store/image-train")
    done = files_of(s3, "bucket/store")
    cli.main(command)
    cli.main(embed_command(tiny_data, tiny_teacher, tmp_path / "local") + options)
    assert files_of(s3, "bucket/store") == contents(tmp_path / "local")
    assert len(open_table("s3://bucket/store", "image", "train")) == 24
    assert 3 <= sum(name.endswith("shard.json") for name in done) <= 12


def test_several_processes_share_a_bucket(
    s3: Any, synthetic: SimpleNamespace, start: Start, tmp_path: Path, contents: Contents, wait_for: WaitFor
) -> None:
    place = "s3://bucket/table"
    children = [start(place, 30, 4, 2, pause=0.1, rank=rank, world=3) for rank in range(3)]
    wait_for(lambda: s3.invalidate_cache() or s3.exists("bucket/table/shard-00001/shard.json"))
    children[1].kill()
    assert [child.answer() for child in children] == ["unfinished", "", "unfinished"]
    assert start(place, 30, 4, 2, rank=1, world=3).answer() == "30 rows"
    synthetic.build(tmp_path, 30, 4, 2)
    assert files_of(s3, "bucket/table") == contents(tmp_path)


def test_a_bucket_that_is_not_there_is_not_made(s3: Any, synthetic: SimpleNamespace) -> None:
    with pytest.raises(StoreError, match="s3://buckett/table: could not write: The specified bucket does not exist"):
        synthetic.build("s3://buckett/table", 3, 4)
    assert [name.strip("/") for name in s3.ls("")] == ["bucket"]


@pytest.mark.parametrize(
    "setting", [("AWS_ACCESS_KEY_ID", "", "credentials"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "connect")]
)
def test_no_answer_is_an_error_and_not_taken_for_an_empty_bucket(
    setting: tuple[str, str, str], s3: Any, synthetic: SimpleNamespace, tiny_data: Path, tiny_teacher: str
) -> None:
    """Else a finished table would be begun anew."""
    synthetic.build("s3://bucket/store/image-val", 3, 4)
    name, value, reason = setting
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv(name, value)
        type(s3).clear_instance_cache()
        with pytest.raises(SystemExit, match=f"s3://bucket/store/.*could not be reached: .*{reason}"):
            cli.main([*embed_command(tiny_data, tiny_teacher, "s3://bucket/store"), "--split", "val"])
    type(s3).clear_instance_cache()
