"""What goes beside an export's files: export.json, with all that was measured, and README.md, how it is used."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from clip_distill.exports import EXPORT_FILE, TARGETS, TOWERS_FILE
from clip_distill.exports.target import Given, Target
from clip_distill.exports.use import ANY, USE
from clip_distill.system.files import read_json, sha256, write_bytes, write_json
from clip_distill.system.registry import resolve
from clip_distill.towers.spec import count_parameters

PACKAGES = "clip-distill torch open_clip_torch onnx onnxruntime tokenizers transformers sentence-transformers openvino"
VERSIONS = (*PACKAGES.split(), "executorch", "litert-torch", "coremltools")
MEASURED = {"student": "students 学生, torch", "image": "image file 图像文件", "text": "text file 文本文件"}
LIBRARIES = ("transformers", "sentence-transformers", "open_clip")  # that Hugging Face knows by these names
DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4"}


def write_card(
    folder: Path,
    name: str,
    given: Given,
    students: Mapping[str, str | None],
    recall: Mapping[str, Any],
    short: Sequence[str],
) -> None:
    """Write export.json, then README.md.

    Args:
        folder: Of the export, with all its other files.
        name: Of the target.
        given: What was exported.
        students: Tower → what it was loaded from; None for the teacher's own.
        recall: Of the files and of the students in torch; empty where it was not measured.
        short: What fell short, and is not there.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    towers = {spec.tower: _facts(spec.tower, module, students) for spec, module in (given.image, given.text)}
    if (folder / TOWERS_FILE).is_file():
        described = read_json(folder / TOWERS_FILE)
        towers = {tower: facts for tower, facts in towers.items() if tower in described}
        for tower, facts in towers.items():
            facts |= {key: value for key, value in described[tower].items() if key.endswith("_cosine_to_torch")}
    teacher = {key: given.teacher[key] for key in ("name", "weights_sha256", "embed_dim") if key in given.teacher}
    record = {
        "target": name,
        "weights": given.weights,
        "teacher": teacher,
        "towers": towers,
        "recall": dict(recall),
        "fell_short": list(short),
        "compared_on": {"photos": len(given.photos), "captions": len(given.captions)},
        "files": {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
        "versions": {package: found for package in VERSIONS if (found := _version(package))},
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    write_json(folder / EXPORT_FILE, record)
    write_bytes(folder / "README.md", _card(record, given).encode())


def _facts(tower: str, module: Any, students: Mapping[str, str | None]) -> dict[str, Any]:
    return {"student": students[tower], "parameters": count_parameters(module)} | _recipe(students[tower])


def _recipe(student: str | None) -> dict[str, Any]:
    """What a student was trained on, and how, where its run's folder still says so; no path of this machine."""
    file = Path(student or "") / "recipe.yaml"
    if student is None or not file.is_file():
        return {}
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    made = {key: recipe["student"].get(key) for key in ("name", "options", "init")}
    data = [recipe.get("data"), recipe.get("translations")]
    names = [Path(str(each)).name for each in data if each not in (None, "null")]
    epochs = (recipe.get("trainer") or {}).get("max_epochs")
    return {"recipe": {"student": made, "losses": recipe["loss"]["names"], "epochs": epochs, "data": names}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _card(record: dict[str, Any], given: Given) -> str:
    target = resolve("export", TARGETS, record["target"])
    licence = target.licence if isinstance(target, Target) else ""
    size = sum(file["bytes"] for file in record["files"].values()) / 1e6
    teacher, dim = record["teacher"], given.text[0].embed_dim
    compared = f"{record['compared_on']['photos']} photos, {record['compared_on']['captions']} captions"
    library = record["target"] if record["target"] in LIBRARIES else "clip-distill"
    short = "".join(f"\nNot here, since it fell short 未达标，未写入: {each}\n" for each in record["fell_short"])
    return f"""---
library_name: {library}
pipeline_tag: zero-shot-image-classification
license: other
license_name: as-the-teacher
tags: [clip, distillation, {record["target"]}]
---
# {record["target"]}: image and text encoder, {size:.1f} MB ({record["weights"]})

Distilled by CLIP Distill from the teacher `{teacher["name"]}` (weights SHA-256 `{teacher["weights_sha256"][:16]}…`).
Its embedding space of {dim} numbers is kept, so its index stays. The teacher's licence holds for what was learnt from
it: look it up before you pass this on. {licence}

由 CLIP Distill 从老师模型 `{teacher["name"]}` 蒸馏得到，沿用其 {dim} 维的向量空间，已有的索引可以继续用。
老师模型的许可证同样约束学到的权重：转发之前请先查看。
{short}
{_towers(record)}

Compared on {compared} of the exporter's own, or on noise and made-up captions where there were none. export.json has
all figures, versions, and the SHA-256 of every file.
比较用的是导出者自己的照片和句子；没有时用噪声图和自编句子。export.json 里有全部数字、版本和每个文件的 SHA-256。
{_recalls(record["recall"])}
```
{_code(record, given)}
```

Limits: a student knows best what it was trained on; other words and photos are found less reliably.
局限：学生最熟悉训练数据那一类内容，对其他词语和照片的检索会差一些。
"""


def _code(record: dict[str, Any], given: Given) -> str:
    code = USE.get(record["target"], ANY).replace("WIDTH", str(given.text[0].embed_dim))
    code = code.replace("DTYPE", DTYPES[record["weights"]])
    own = "modeling_clip_distill.py" in record["files"]
    if record["target"] == "open_clip" and given.image[0].builder is not None:
        code = "import clip_distill  # adds the architecture: pip install 'clip-distill[train]'\n" + code
    if own:
        code = "# runs the code in the folder, which needs: pip install 'clip-distill[train]'\n" + code
    return code.replace("TRUST", ", trust_remote_code=True" if own else "")


def _towers(record: dict[str, Any]) -> str:
    lines = [
        "| tower 编码器 | whose 来源 | parameters 参数 | cosine to torch, mean and least 与 torch 的余弦，平均与最小 |",
        "| --- | --- | ---: | ---: |",
    ]
    made = []
    for tower, facts in record["towers"].items():
        whose = "student, 学生" if facts["student"] else "teacher's own, 老师原有的"
        mean, least = (facts.get(f"{kind}_cosine_to_torch") for kind in ("mean", "least"))
        cosines = "not run 未运行" if mean is None else f"{mean}, {least}"
        cosines = cosines if "mean_cosine_to_torch" in facts else ""
        lines.append(f"| {tower} | {whose} | {facts['parameters'] / 1e6:.2f}M | {cosines} |")
        if recipe := facts.get("recipe"):
            losses, epochs = " + ".join(recipe["losses"]), recipe["epochs"]
            made.append(
                f"{tower}: {recipe['student']['name']} {recipe['student']['options']}, {losses}, {epochs} epochs of "
                f"{', '.join(recipe['data']) or 'made-up texts'}"
            )
    return "\n".join([*lines, "", *(f"- {line}" for line in made)]).rstrip()


def _recalls(recall: Mapping[str, Any]) -> str:
    """A row for the students in torch, one for each file beside the other student."""
    if not recall:
        return ""
    rows = [
        f"| {name} | {recall[key]['t2i_r10']:.1f} | {recall[key]['i2t_r10']:.1f} | {recall[key]['mean_recall']:.1f} |"
        for key, name in MEASURED.items()
        if key in recall
    ]
    head = f"{recall['photos']:,} photos 照片, {recall['captions']:,} captions 句子"
    return "\n".join(
        ["", f"| {head} | text→image R@10 | image→text R@10 | mean recall |", "| --- | ---: | ---: | ---: |", *rows, ""]
    )
