"""A head solved in closed form: the very least squares, in students that are made as `fit` makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_distill.cli import main as cli
from clip_distill.students import make_student
from clip_distill.towers.spec import load_tower
from clip_distill.train.begin import new_student
from clip_distill.train.head import STRENGTH, embed_without_head, head_name, ridge, set_head
from clip_distill.train.settings import fit_parser, to_recipe

STUDENTS = {
    "vit": ("image", "vit", "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}"),
    "cut": ("image", "timm_cut", "{model: test_efficientnet, input_resolution: 32, hidden: 64}"),
    "text": ("text", "transformer", "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}"),
}


def arguments(student: str, data: Path, store: Path, out: Path, *options: str) -> list[str]:
    tower, name, sizes = STUDENTS[student]
    base = ["--tower", tower, "--data", str(data), "--store", str(store), "--out", str(out)]
    base += ["--student.name", name, "--student.options", sizes, "--loader.workers", "0", "--loader.batch_size", "8"]
    return [*base, "--seed", "4", "--trainer.accelerator", "cpu", *options]


def make(*given: Any) -> tuple[Any, Any]:
    """The module and its data, as `fit` begins with them."""
    parser = fit_parser()
    recipe, _ = to_recipe(parser, parser.parse_args(arguments(*given)))
    module, data, _ = new_student(recipe, fresh=True)
    return module, data


def outputs(module: Any, data: Any, samples: int) -> tuple[Tensor, Tensor]:
    """What the whole student makes of the samples that its head is solved on, and their targets."""
    head = getattr(module.student, head_name(module.student))
    features, targets = embed_without_head(module, data, samples, head_name(module.student))
    with torch.no_grad():
        return head[1:](features) if isinstance(head, nn.Sequential) else features @ head, targets


@pytest.mark.parametrize("student", STUDENTS)
def test_the_student_starts_with_the_least_squares_head_and_is_else_the_same(
    student: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    plain, data = make(student, tiny_data, tiny_views_store, tmp_path)
    probed, _ = make(student, tiny_data, tiny_views_store, tmp_path, "--student.probe", "16", "--ema", "0.9")
    name = head_name(plain.student)
    features, targets = embed_without_head(plain, data, 16, name)
    assert len(features) == len(targets) == 16

    # an oracle: least squares with rows that pull the weights to zero, in numpy
    x, t = (each.double().numpy() for each in (features, targets))
    t = t / np.linalg.norm(t, axis=1, keepdims=True) * np.linalg.norm(t, axis=1).mean()
    x_mean, t_mean = (x.mean(0), t.mean(0)) if student == "cut" else (0, 0)
    pull = np.sqrt(STRENGTH * ((x - x_mean) ** 2).sum(0).mean()) * np.eye(x.shape[1])
    padded = np.vstack([t - t_mean, np.zeros((x.shape[1], t.shape[1]))])
    weight = np.linalg.lstsq(np.vstack([x - x_mean, pull]), padded, rcond=None)[0]
    expected = torch.from_numpy((x - x_mean) @ weight + t_mean).float()

    before, (after, _) = outputs(plain, data, 16)[0], outputs(probed, data, 16)
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
    assert F.cosine_similarity(after, targets).mean() > F.cosine_similarity(before, targets).mean() + 0.2
    for (key, one), other in zip(plain.student.state_dict().items(), probed.student.state_dict().values(), strict=True):
        assert torch.equal(one, other) != key.startswith(name), key
    for one, other in zip(probed.student.parameters(), probed.average.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert probed.student.training


def test_ridge_by_hand() -> None:
    x, t = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]])
    weight, bias = ridge(x, t, 1.0, centred=False)  # XᵀX is 5, λ is 5
    assert (weight.item(), bias.item()) == pytest.approx((0.5, 0))
    weight, bias = ridge(x, t + 3, 0.0, centred=True)
    assert (weight.item(), bias.item()) == pytest.approx((1, 3))


@pytest.mark.parametrize(("hidden", "rank"), [(24, 6), (12, 6), (9, 4), (8, 4)])
def test_two_layers_with_gelu_compute_a_linear_map_of_half_their_width(hidden: int, rank: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(6, 10), torch.randn(10), torch.randn(50, 6)
    head = nn.Sequential(nn.Identity(), nn.Linear(6, hidden), nn.GELU(), nn.Linear(hidden, 10))
    with torch.no_grad():
        set_head(head, weight, bias)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        nearest = left[:, :rank] * values[:rank] @ right[:rank]
        torch.testing.assert_close(head(x), x @ nearest + bias)


def test_heads_of_another_kind_are_refused(make_record: Any) -> None:
    sizes = {"model": "test_efficientnet", "input_resolution": 32}
    for name, options, found in (("timm_cut", sizes | {"head": "conv"}, "head conv"), ("timm", sizes, "TimmModel")):
        _, student = make_student("image", name, make_record(32), options)
        with pytest.raises(ValueError, match=rf"student\.probe: expected .*found .*{found}"):
            head_name(student)


def test_the_command_says_what_it_solved_and_trains_on_from_there(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments("cut", tiny_data, tiny_views_store, tmp_path / "run", "--student.probe", "4096")
    cli.main(["fit", "--preset", "none", *given, "--trainer.max_epochs", "1", "--optimizer.lr", "1e-9"])
    assert "head: solved on 24 samples, cosine 0." in capsys.readouterr().out
    _, student = load_tower(tmp_path / "run")
    module, _ = make("cut", tiny_data, tiny_views_store, tmp_path, "--student.probe", "4096")
    torch.testing.assert_close(student.head.state_dict(), module.student.head.state_dict(), rtol=0, atol=1e-6)
    with pytest.raises(SystemExit, match=r"student\.probe: expected --target stored, found online"):
        cli.main(["fit", "--preset", "none", *given, "--target", "online", "--overwrite", "true"])
    with pytest.raises(SystemExit, match=r"student\.probe: expected 0 or more samples, found -1"):
        cli.main(["fit", "--preset", "none", *given, "--student.probe", "-1", "--overwrite", "true"])
