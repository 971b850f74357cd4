"""What is said when a GPU's memory is not enough; here a loss runs out, as torch does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.towers.memory import fits_on_cuda, largest_below

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
SIZES = {
    "image": "{input_resolution: 32, patch_size: 16, width: 16, layers: 1, heads: 2}",
    "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
}


class Greedy(nn.Module):
    """Cosine distance, for up to three samples."""

    most = 3

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        if len(student) > self.most:
            raise FULL
        return (1 - nn.functional.cosine_similarity(student, target)).mean()


class Insatiable(Greedy):
    most = 0


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_batch_that_fits_is_found_and_told(
    tower: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    options = ["fit", "--preset", "none", "--tower", tower, "--data", str(tiny_data), "--store", str(tiny_views_store)]
    options += ["--student.options", SIZES[tower], "--loader.workers", "0", "--trainer.accelerator", "cpu"]
    options += ["--loss.names", f'["{__name__}:Greedy"]', "--trainer.max_epochs", "1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*options, "--loader.batch_size", "16"])
    told = str(stopped.value)
    assert "cpu ran out of memory at --loader.batch_size 16: --loader.batch_size 2 fits, as was just tried" in told
    assert "--trainer.accumulate_grad_batches" in told
    cli.main([*options, "--loader.batch_size", "2", "--overwrite"])


def test_a_student_that_never_fits_is_told(tiny_data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    with pytest.raises(cd.OutOfMemory, match="not even one sample fits") as raised:
        cd.fit(
            tower="text",
            data=tiny_data,
            store=tiny_views_store,
            out=tmp_path,
            loss={"names": [Insatiable]},
            trainer={"accelerator": "cpu"},
        )
    assert isinstance(raised.value, MemoryError)
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


def test_validation_has_a_batch_of_its_own(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_distill.train.distill import Distiller

    def full(self: Distiller, batch: object, index: int) -> None:
        raise FULL

    monkeypatch.setattr(Distiller, "validation_step", full)
    with pytest.raises(cd.OutOfMemory, match=r"--loader.val_batch_size 256: .*Try --loader.val_batch_size 64"):
        cd.fit(
            tower="text",
            data=tiny_data,
            store=tiny_views_store,
            out=tmp_path,
            student={"options": {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}},
            trainer={"accelerator": "cpu", "max_epochs": 1},
        )


def test_embedding_says_which_batch_fits(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_distill.store.embed import Runner

    start: Callable[..., object] = Runner.start

    def small(self: Runner, inputs: Tensor) -> object:
        if len(inputs) > 5:
            raise FULL
        return start(self, inputs)

    monkeypatch.setattr(Runner, "start", small)
    for tower in ("image", "text"):
        places = {"data": tiny_data, "teacher": tiny_teacher, "store": tmp_path / tower}
        with pytest.raises(cd.OutOfMemory, match=r"--batch_size 16: --batch_size 4 fits"):
            cd.embed(**places, tower=tower, batch_size=16, workers=0, device="cpu")
        cd.embed(**places, tower=tower, batch_size=4, workers=0, device="cpu")


def test_halves_are_tried_down_to_one() -> None:
    def run(size: int) -> None:
        if size > 1:
            raise FULL

    assert largest_below(run, 64) == 1
    assert not fits_on_cuda(run, 2)
    assert largest_below(run, 1) == 0
