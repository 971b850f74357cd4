"""The page on losses: it lists all that there are, its recipes build, its loss of one's own runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from clip_distill.losses import LOSSES, WeightedSum
from clip_distill.recipe import Loss
from clip_distill.train.assemble import make_objective

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("losses.md", "losses.zh.md")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_list_all_losses(page: Path) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(LOSSES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_builds_and_gives_a_loss(page: Path) -> None:
    recipes = [yaml.safe_load(block)["loss"] for block in blocks(page, "yaml")]
    assert len(recipes) == 8
    for recipe in recipes:
        loss, parts = make_objective(Loss(**recipe), {"bank": torch.randn(5, 8)})(*torch.randn(3, 4, 8))
        assert torch.isfinite(loss)
        assert list(parts) == recipe["names"]


def test_both_languages_have_the_same_recipes() -> None:
    assert blocks(PAGES[0], "yaml") == blocks(PAGES[1], "yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_loss_of_ones_own_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"page_{page.stem.replace('.', '_')}"
    (tmp_path / f"{name}.py").write_text(blocks(page, "python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows, bank = torch.randn(4, 8), torch.randn(5, 8)
    objective = WeightedSum([f"{name}:Margin"], [1], [1], context={"bank": bank})
    assert float(objective(rows, rows)[0]) == 0
    assert float(objective(bank[:4], rows)[0]) > 0
