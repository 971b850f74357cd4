"""Zero-shot metrics by hand, and classes of photos from folders, tables and lists."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from clip_distill.corpus.layout import IMAGES_SCHEMA
from clip_distill.evaluation.classes import TEMPLATES, find_classes, templates_of, texts_of
from clip_distill.evaluation.zero_shot import (
    agreement_of,
    class_embeddings,
    class_scores,
    measured,
    multilabel,
    single,
)
from clip_distill.system.errors import InvalidValue

SCORES = torch.tensor([[0.9, 0.1, -0.2], [0.2, 0.3, 0.1], [0.0, 0.5, 0.4], [0.1, 0.6, -0.5]])


def table(*ids: str) -> pa.Table:
    return pa.table(
        {"id": list(ids), "path": list(ids), "offset": [-1] * len(ids), "size": [-1] * len(ids)}, IMAGES_SCHEMA
    )


def test_a_class_is_the_mean_direction_of_its_texts() -> None:
    texts = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 1.0], [0.0, 3.0]])
    half = 0.5**0.5
    found = class_embeddings(texts, 2)
    torch.testing.assert_close(found, torch.tensor([[half, half], [0.0, 1.0]]))
    torch.testing.assert_close(class_scores(torch.tensor([[0.0, 4.0]]), found), torch.tensor([[half, 1.0]]))


def test_accuracies_and_confusions_by_hand() -> None:
    found = single(SCORES, torch.tensor([0, 0, 2, 1]))
    assert found["top1"] == pytest.approx(50) and found["top5"] == pytest.approx(100)
    assert found["per_class"] == [50.0, 100.0, 0.0] and found["mean_per_class"] == pytest.approx(50)
    assert found["confused"] == [[0, 1, 1], [2, 1, 1]]


def test_a_class_without_photos_has_no_accuracy() -> None:
    found = single(SCORES, torch.tensor([0, 1, 1, 1]))
    assert found["per_class"] == [100.0, 100.0, None] and found["mean_per_class"] == pytest.approx(100)


def test_average_precision_by_hand() -> None:
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    found = multilabel(SCORES, labels)
    # class 1 by falling score: photos 3 (wrong), 2 (right), 1 (wrong), 0 (right)
    assert found["per_class"] == [pytest.approx(100), pytest.approx(100 * (1 / 2 + 2 / 4) / 2), None]
    assert found["mean_average_precision"] == pytest.approx(75)


def test_agreement_is_the_share_of_the_same_first_classes() -> None:
    other = SCORES.clone()
    other[3] = torch.tensor([0.9, 0.1, 0.0])
    assert agreement_of(SCORES, SCORES) == 100
    assert agreement_of(other, SCORES) == 75
    assert measured(other, SCORES, None, False) == {"agreement": 75.0, "photos_per_class": [2, 2, 0]}


def test_folders_are_classes_and_photos_in_none_are_left_out() -> None:
    found = find_classes(table("p/big_cat/1.jpg", "p/dog/2.jpg", "p/dog/old/3.jpg", "p/4.jpg"), None, None)
    assert found.names == ["big cat", "dog"] and len(found.images) == 3 and not found.several
    assert found.labels is not None and found.labels.tolist() == [[True, False], [False, True], [False, True]]


def test_a_table_gives_labels_of_which_a_photo_may_have_several(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("File,Labels\n1.jpg,cat; dog\np/2.jpg,dog|bird\nelsewhere.jpg,cat\n", encoding="utf-8")
    found = find_classes(table("p/1.jpg", "p/2.jpg", "p/3.jpg"), str(file), None)
    assert found.names == ["bird", "cat", "dog"] and found.several and found.labels is not None
    assert found.labels.tolist() == [[False, True, True], [True, False, True], [False, False, False]]


def test_names_of_classes_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("n01\t猫\nn02\t狗\n", encoding="utf-8")
    found = find_classes(table("p/n02/1.jpg"), None, str(file))
    assert found.names == ["猫", "狗"] and found.labels is not None and found.labels.tolist() == [[False, True]]
    assert find_classes(table("p/1.jpg"), None, str(file)).labels is None
    with pytest.raises(InvalidValue, match="found none for 1, for instance 'n03'"):
        find_classes(table("p/n03/1.jpg"), None, str(file))


def test_no_classes_and_unfit_tables_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="a folder for each class"):
        find_classes(table("p/1.jpg"), None, None)
    file = tmp_path / "labels.csv"
    file.write_text("photo,what\n1.jpg,cat\n", encoding="utf-8")
    with pytest.raises(InvalidValue, match="expected a header with a column of files .* found photo, what"):
        find_classes(table("p/1.jpg"), str(file), None)
    file.write_text("file,label\n9.jpg,cat\n", encoding="utf-8")
    with pytest.raises(InvalidValue, match=r"found none; the first row is of '9\.jpg'"):
        find_classes(table("p/1.jpg"), str(file), None)


def test_templates_are_known_ones_or_a_file(tmp_path: Path) -> None:
    assert len(TEMPLATES["clip"]) == 80 and all("{}" in line for lines in TEMPLATES.values() for line in lines)
    file = tmp_path / "templates.txt"
    file.write_text("{}\na {} here\n", encoding="utf-8")
    assert texts_of(["cat", "dog"], templates_of(str(file))) == ["cat", "a cat here", "dog", "a dog here"]
    file.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(InvalidValue, match=r"expected lines with \{\} .* found 'nothing'"):
        templates_of(str(file))
    with pytest.raises(InvalidValue, match="expected short, clip, none, chinese or a file"):
        templates_of("long")
