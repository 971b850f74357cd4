"""clip_benchmark, run for real on an exported open_clip folder: its recall is ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

import clip_distill as cd
from clip_distill.corpus.layout import scan
from clip_distill.pixels.photos import read_bytes_of

pytest.importorskip("clip_benchmark")

KS = (1, 5)


def write_shards(data: Path, out: Path) -> None:
    """The validation photos, with their captions a line each, as clip_benchmark's WebDataset."""
    split = scan(str(data)).val
    captions: dict[str, list[str]] = {}
    for row in split.captions.to_pylist():
        captions.setdefault(row["image_id"], []).append(row["text"])
    (out / "test").mkdir(parents=True)
    with tarfile.open(out / "test/0.tar", "w") as tar:
        for number, row in enumerate(split.images.to_pylist()):
            photo = read_bytes_of(row["path"], row["offset"], row["size"])
            kind = "png" if photo[:4] == b"\x89PNG" else "jpg"
            for end, content in ((kind, photo), ("txt", "\n".join(captions[row["id"]]).encode())):
                info = tarfile.TarInfo(f"s{number:04d}.{end}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    (out / "test/nshards.txt").write_text("1")
    (out / "dataset_type.txt").write_text("retrieval")


def test_its_recall_is_ours(tiny_runs: dict[str, Path], tiny_store: Path, tiny_data: Path, tmp_path: Path) -> None:
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    cd.export(**students, to="open_clip", out=tmp_path / "out")
    write_shards(tiny_data, tmp_path / "own")
    command = [
        sys.executable,
        "-c",
        "import clip_distill; from clip_benchmark.cli import main; main()",
        "eval",
        "--dataset",
        "wds/own",
        "--no_amp",
    ]
    command += ["--dataset_root", str(tmp_path / "own"), "--task", "zeroshot_retrieval", "--num_workers", "0"]
    command += [
        "--model",
        f"local-dir:{tmp_path / 'out'}",
        "--pretrained",
        "",
        "--output",
        str(tmp_path / "found.json"),
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--recall_k", *map(str, KS)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads((tmp_path / "found.json").read_text())["metrics"]
    report = cd.evaluate(**students, data=tiny_data, store=tiny_store, device="cpu", workers=0)
    (ours,) = (pair for pair in report.pairings if (pair["image"], pair["text"]) == ("student", "student"))
    for k in KS:
        assert 100 * theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"t2i_r{k}"], abs=0.1)
        assert 100 * theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours[f"i2t_r{k}"], abs=0.1)
