"""Texts made up of the teacher's words: stored beside captions, mixed in, or all that a student learns from."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import clip_distill as cd
from clip_distill.batches.order import EpochBatches
from clip_distill.cli.main import main as cli
from clip_distill.store.joined import Joined
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store
from clip_distill.towers.spec import load_tower
from clip_distill.train.prompted import drawn_each_epoch

TINY = {"options": {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2, "embedding_rank": 4}}


@pytest.fixture(scope="module")
def store(tiny_data: Path, tiny_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all of `tiny_data`, and 200 made-up texts; single words are left out, for time."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip_distill.tokens.prompts.TEMPLATES", ())
        options = {"prompts": "vocabulary", "prompts_count": 200, "workers": 0, "device": "cpu", "dtype": "float32"}
        cd.embed(data=tiny_data, teacher=tiny_teacher, store=folder, **options)
    return folder


def test_prompts_are_a_table_of_their_own(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Store(store / "text-prompts")
    assert (len(table), table.manifest.split, len(table.tokens)) == (200, "prompts", 200)
    cli(["store", "info", "--store", str(store)])
    assert "text-prompts" in capsys.readouterr().out
    cli(["store", "verify", "--store", str(store)])


def test_tables_are_joined_row_by_row(store: Path) -> None:
    parts = [Store(store / name) for name in ("text-train", "text-prompts")]
    joined = Joined(parts)
    assert len(joined) == len(parts[0]) + 200 == len(joined.ids) == len(joined.tokens)
    rows = np.array([len(parts[0]) + 5, 3, len(parts[0])])
    expected = [parts[1].embeddings(np.array([5])), parts[0].embeddings(np.array([3])), parts[1].embeddings([0])]
    assert np.array_equal(joined.embeddings(rows), np.concatenate(expected))
    assert np.array_equal(joined.all_embeddings()[rows], joined.embeddings(rows))
    assert joined.find([parts[1].ids[5].as_py(), parts[0].ids[3].as_py(), "neither"]).tolist() == [*rows[:2], -1]
    assert np.array_equal(pickle.loads(pickle.dumps(joined)).embeddings(rows), joined.embeddings(rows))
    assert joined.tokens.take(rows[:1]).flat.tolist() == parts[1].tokens.take(np.array([5])).flat.tolist()


def test_the_share_decides_how_many_are_drawn() -> None:
    assert drawn_each_epoch(1000, 100, 0.5) == (100, 100)
    assert drawn_each_epoch(1000, 100, 0.75) == (100, 300)
    assert drawn_each_epoch(150, 100, 0.75) == (100, 50), "there are no more"
    assert drawn_each_epoch(1000, 0, 0.5) is None
    assert drawn_each_epoch(1000, 100, 1.0) is None


def test_an_epoch_has_all_captions_and_fresh_prompts() -> None:
    batches = EpochBatches(100, 8, drawn=(20, 10), seed=3)
    seen = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        rows = np.concatenate(list(batches))[:, 0].tolist()
        assert len(rows) == len(set(rows)) == 30 and set(range(20)) < set(rows)
        seen.append(set(rows))
    assert len(batches) == 4 and seen[0] != seen[1]


@pytest.mark.parametrize("data", [True, False], ids=["captions", "nothing else"])
def test_a_student_learns_from_prompts(data: bool, store: Path, tiny_data: Path, tmp_path: Path) -> None:
    places: dict[str, Any] = {"store": store, "data": tiny_data if data else None}
    trainer = {"max_epochs": 4, "accelerator": "cpu"}
    student = TINY | {"vocabulary": "full"}
    loss = {"names": ["cosine"]}
    run = cd.fit(tower="text", out=tmp_path, prompts=0.5, student=student, loss=loss, trainer=trainer, **places)
    made = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert made["prompts"] == 0.5
    spec, module = load_tower(run)
    assert spec.cfg["embedding_rank"] == 4 and module.token_embedding.rows.weight.shape == (49408, 4)
    assert (run.mean_recall or 0) > 0
    assert (tmp_path / "held_out.json").is_file() == (not data), "prompts are held out only where nothing else is there"
    if not data:  # and `evaluate` measures by the same
        report = cd.evaluate(store=store, text_student=run, device="cpu", workers=0)
        held = json.loads((tmp_path / "held_out.json").read_text(encoding="utf-8"))
        assert report.to_dict()["data"]["captions"] == len(held["ids"] if isinstance(held, dict) else held)
        assert report.students["text"]["match"]["match_r10"] > 0


def test_without_the_table_the_way_there_is_told(tiny_data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    places = {"data": tiny_data, "store": tiny_views_store, "out": tmp_path}
    with pytest.raises(StoreError, match="--prompts vocabulary"):
        cd.fit(tower="text", prompts=0.5, **places)
    with pytest.raises(cd.Error, match="expected --tower text"):
        cd.fit(tower="image", prompts=0.5, **places)
    with pytest.raises(cd.Error, match="a share from 0 to 1, found 2"):
        cd.fit(tower="text", prompts=2, preset="none", **places)
