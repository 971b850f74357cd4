"""The README and the page for contributors: their Python runs as it is printed, and what they name is there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from clip_distill.cli import main as cli
from clip_distill.verbs import run as run_verb
from clip_distill.walkthrough import flow

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TINY = replace(flow.Budget(), photos=96, val_photos=12, teacher_epochs=1, image_samples=96, text_samples=256)


def python_in(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README", "CONTRIBUTING"])
def test_both_languages_show_the_same_python(page: str) -> None:
    assert python_in(f"{page}.md") == python_in(f"{page}.zh.md") != []


def test_the_python_of_the_readme_runs_after_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flow.run(Path("quickstart"), None, None, 0, TINY, run_verb)
    capsys.readouterr()
    (program,) = python_in("README.md")
    exec(program, {"__name__": "readme"})  # what its reader does
    printed = capsys.readouterr().out
    assert "teacher student" in printed
    assert "('image', 'text') (2, 128) [" in printed
    assert (tmp_path / "exported/open_clip_config.json").is_file()


def test_the_loss_of_a_contributor_trains(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = python_in("CONTRIBUTING.md")
    (tmp_path / "huber_loss.py").write_text(program, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["--student.options", "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}"]
    options += [
        "--loss.names",
        '[cosine, "huber_loss:Huber"]',
        "--trainer.max_epochs",
        "1",
        "--trainer.log_every_n_steps",
        "1",
    ]
    options += ["--loss.options", '{"huber_loss:Huber": {delta: 0.05}}', "--trainer.accelerator", "cpu"]
    places = ["--data", str(tiny_data), "--store", str(tiny_views_store), "--out", str(tmp_path / "run")]
    cli.main(["fit", "--preset", "none", "--tower", "text", *places, *options])
    assert "train/huber_loss:Huber" in (tmp_path / "run/logs/metrics.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_files_of_the_project_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:benchmarks|tests|clip_distill|docs)/[\w./]*\w\.(?:py|yaml|md))\b", text)
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_page_is_there_in_both_languages(page: Path) -> None:
    stem = page.name.removesuffix(".md").removesuffix(".zh")
    assert (page.parent / f"{stem}.md").is_file() and (page.parent / f"{stem}.zh.md").is_file()
