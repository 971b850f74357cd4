"""The number of workers follows from two measured times, and measuring leaves no trace."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from clip_distill.batches.datasets import Images
from clip_distill.batches.workers import Choice, choose, cores_for, measure, step_seconds
from clip_distill.recipe import Loader, Recipe, Student
from clip_distill.system.cores import cores
from clip_distill.train.assemble import assemble
from clip_distill.train.begin import new_student

STUDENT = {"input_resolution": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("render", "step", "available", "workers"),
    [
        (0.001, 1.0, 8, 0),  # 0.1 % of a step: not worth a process
        (0.001, 0.05, 8, 1),
        (0.004, 0.004, 8, 2),
        (0.004, 0.001, 8, 5),
        (0.004, 0.001, 3, 3),
        (0.004, 0.001, 0, 1),
    ],
)
def test_the_fewest_workers_that_keep_up_are_chosen(render: float, step: float, available: int, workers: int) -> None:
    choice = choose(render, step, available)
    assert choice.workers == workers
    assert ("would keep up" in str(choice)) == (workers < choice.wanted)


def test_processes_share_the_cores() -> None:
    assert cores_for(10_000, CPU) == 1
    assert cores_for(1, torch.device("cuda")) == cores() >= cores_for(1, CPU) >= 1


class Student4(nn.Module):
    """A student with all that a measure could leave a trace in: running means, gradients, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2))
        self.sizes: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        out: Tensor = self.layers(pixels)
        return out


def test_measuring_a_step_leaves_no_trace() -> None:
    student = Student4()
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    student(torch.rand(2, 3, 8, 8))
    student.zero_grad()
    before, random = {key: value.clone() for key, value in student.state_dict().items()}, torch.get_rng_state()
    sizes: list[int] = []

    def prepare(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return batch.float()

    seconds = step_seconds(student, prepare, pixels, 40, CPU, contextlib.nullcontext)
    assert 0 < seconds < 1
    assert sizes[0] == 2 and sizes == sorted(sizes)
    assert set(sizes) <= {2, 8, 32, 40}  # as far as the machine's speed lets it get
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(student.sizes) == 1


def test_a_training_measures_and_says_what_it_chose(
    tiny_data: Path, tiny_views_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe("image", str(tiny_data), str(tiny_views_store), "unused", Student(options=dict(STUDENT)))
    recipe = replace(recipe, loader=Loader(batch_size=6))
    module, data = assemble(recipe)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, limit_val_batches=0, use_distributed_sampler=False, **options)
    began = time.perf_counter()
    trainer.fit(module, data)
    assert time.perf_counter() - began < 30  # of which the measure is to take three
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("loader: ")]
    assert len(said) == 1
    assert "ms to bring" in said[0] and "ms to train on" in said[0]
    assert trainer.train_dataloader is not None
    assert trainer.train_dataloader.num_workers == int(said[0].split()[1])


def test_features_of_frozen_stages_are_measured_as_what_they_are(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    """They have other channels than a picture, and are not normalised."""
    options = {"model": "test_efficientnet", "input_resolution": 32, "hidden": 16}
    student = Student("timm_cut", options, freeze=2)
    loader = Loader(batch_size=6, features=str(tmp_path))
    places = str(tiny_data), str(tiny_views_store), "unused"
    module, data, _ = new_student(Recipe("image", *places, student, loader=loader), fresh=True)
    choices: list[Choice] = []

    class Measures(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            assert isinstance(data.train, Images)
            choices.append(measure(data.train, 0, 6, trainer))

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=1, limit_val_batches=0, callbacks=[Measures()], **options)
    trainer.fit(module, data)
    assert choices[0].render > 0 and choices[0].step > 0
