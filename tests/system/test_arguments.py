"""Command lines: what jsonargparse does not do by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_distill.system.arguments import call
from clip_distill.train.settings import fit_parser


def join(word: str, loud: bool = False, count: int = 1, twice: bool = False) -> tuple[str, bool, int, bool]:
    """Give back what it was given.

    Args:
        word: A word.
        loud: A switch.
        count: A number.
        twice: Another switch.
    """
    return word, loud, count, twice


@pytest.mark.parametrize(
    ("line", "loud", "twice"),
    [
        ("--word a", False, False),
        ("--word a --loud", True, False),
        ("--loud --word a --twice", True, True),
        ("--loud false --word a --twice true", False, True),
        ("--loud=false --twice --word a", False, True),
    ],
)
def test_a_switch_needs_no_value(line: str, loud: bool, twice: bool) -> None:
    assert call("join", join, "", line.split()) == ("a", loud, 1, twice)


def test_another_flag_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("join", join, "", ["--word", "a", "--count"])
    assert "--count: expected one argument" in capsys.readouterr().err


def test_the_switches_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{tower: text, data: D, store: S, out: O, resume: false}", encoding="utf-8")
    config = fit_parser().parse_args(
        ["--recipe", str(recipe), "--resume", "--sources.recursive", "--trainer.max_epochs", "2"]
    )
    assert config.resume is True and config.sources.recursive is True and config.trainer.max_epochs == 2
