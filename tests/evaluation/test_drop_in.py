"""Answers before and after, scores worth showing, and verdicts, on hand-made embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_distill.evaluation.drop_in import calibrate, first_answers, first_scores, half, recalls, same_answers
from clip_distill.evaluation.drop_in_report import Queries, judge
from clip_distill.system.errors import InvalidValue

PHOTOS = torch.eye(3)


def test_first_answers_are_the_nearest_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    photos = torch.nn.functional.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = (queries @ photos.T).sort(1, descending=True)
    monkeypatch.setattr("clip_distill.evaluation.drop_in.CHUNK_SCORES", 20)
    scores, rows = first_answers(queries, photos, 4)
    assert torch.equal(rows, expected.indices[:, :4])
    torch.testing.assert_close(scores, expected.values[:, :4])


def test_same_answers_do_not_depend_on_their_order() -> None:
    before, after = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]), torch.tensor([[1, 0, 2, 3, 4], [5, 1, 2, 3, 4]])
    assert same_answers(before, before) == {"first_1": 100.0, "first_5": 100.0}
    assert same_answers(before, after) == {"first_1": 50.0, "first_5": pytest.approx(60)}


def test_recalls_of_known_queries() -> None:
    found = recalls(torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.8, 0.0]]), PHOTOS, torch.tensor([0, 1]))
    assert found == {"r1": 50.0, "r5": 100.0, "r10": 100.0, "mean": pytest.approx(250 / 3)}


def test_first_scores_with_and_without_the_right_photo() -> None:
    queries = torch.tensor([[0.8, 0.6, 0.0], [0.8, 0.0, 0.6]])
    present, right, absent = first_scores(queries, PHOTOS, torch.tensor([0, 2]), page=1)
    assert right.tolist() == [True, False]
    torch.testing.assert_close(present, torch.tensor([0.8, 0.8]))
    torch.testing.assert_close(absent, torch.tensor([0.6, 0.8]))
    assert first_scores(queries, PHOTOS, torch.tensor([0, 2]), page=2)[1].tolist() == [True, True]


def test_the_score_to_show_by_hand() -> None:
    present, right = torch.tensor([0.9, 0.8, 0.7, 0.4]), torch.tensor([True, True, False, True])
    absent = torch.tensor([0.6, 0.5, 0.3, 0.2])
    # from the top: right, right, wrong, wrong (absent), wrong (absent), right …
    found = calibrate(present, right, absent, 0.6)
    assert found["threshold"] == pytest.approx(0.7) and found["reached"]
    assert found["precision"] == pytest.approx(200 / 3) and found["answered"] == 75 and found["right"] == 50
    assert found["curve"][0] == pytest.approx([0.9, 100, 25]) and len(found["curve"]) == 8


def test_where_no_score_is_good_enough_the_best_balance_is_taken() -> None:
    present, right = torch.tensor([0.9, 0.8]), torch.tensor([False, True])
    found = calibrate(present, right, torch.tensor([0.7, 0.1]), 0.9)
    assert not found["reached"] and found["threshold"] == pytest.approx(0.8) and found["precision"] == 50


def test_answers_of_one_score_are_shown_together() -> None:
    present, right = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([True, False, False])
    found = calibrate(present, right, torch.tensor([0.5, 0.5, 0.5]), 0.9)
    assert not found["reached"] and found["precision"] == pytest.approx(100 / 6) and found["answered"] == 100


def test_half_of_an_index_is_always_the_same_half() -> None:
    names = [f"{number}.jpg" for number in range(101)]
    chosen = half(names)
    assert abs(int(chosen.sum()) - 50) <= 1
    assert np.array_equal(half(names[::-1]), chosen[::-1])


def test_queries_know_their_photos_by_name() -> None:
    names = ["/home/a/1.jpg", "/home/a/2.jpg"]
    known = Queries.of([("two", "2.jpg"), ("nine", "9.jpg"), ("none", None)], names)
    assert known.texts == ["two"] and known.right is not None and known.right.tolist() == [1] and known.dropped == 2
    unknown = Queries.of([("a", None), ("b", None), ("a", None)], names)
    assert unknown.texts == ["a", "b"] and unknown.right is None
    with pytest.raises(InvalidValue, match=r"such as '/home/a/1\.jpg', found none of 1, such as '9\.jpg'"):
        Queries.of([("nine", "9.jpg")], names)
    with pytest.raises(InvalidValue, match="expected texts, found none"):
        Queries.of([], names)


def stages(after: float, again: float | None = None) -> dict[str, dict[str, dict[str, float]]]:
    found = {"before": {"recall": {"mean": 50.0}}, "after": {"recall": {"mean": after}}}
    return found | ({} if again is None else {"re-indexed": {"recall": {"mean": again}}})


@pytest.mark.parametrize(
    ("after", "again", "verdict"),
    [(48, None, "yes"), (40, None, "no"), (40, 48, "re-index first"), (40, 41, "no"), (55, 10, "yes")],
)
def test_verdicts(after: float, again: float | None, verdict: str) -> None:
    found, reason = judge(stages(after, again), 95, 50)
    assert found == verdict and f"{2 * after:.0f}%" in reason


def test_without_known_answers_the_same_answers_decide() -> None:
    some = {"before": {"same": {"first_1": 100.0}}, "after": {"same": {"first_1": 20.0, "first_5": 40.0}}}
    assert judge(some, 95, 30)[0] == "yes" and judge(some, 95, 50)[0] == "no"
