"""What goes beside an export's files: export.json, with all that was measured, and README.md, how it is used."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clip_distill.exports import EXPORT_FILE, TARGETS, TOWERS_FILE
from clip_distill.exports.target import Given, Target
from clip_distill.system.files import read_json, sha256, write_bytes, write_json
from clip_distill.system.registry import resolve
from clip_distill.towers.spec import count_parameters

VERSIONS = ("clip-distill", "torch", "open_clip_torch", "onnx", "onnxruntime", "tokenizers")
USE = {
    "open_clip": """import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")""",
    "rclip": "RCLIP_DATADIR=FOLDER rclip 'a dog on a beach'",
    "immich": """# not run: the folder in the place of a model of the same width in the machine-learning cache;
# choose that model under Administration > Settings > Machine Learning > Smart Search, then run it on all photos
docker cp FOLDER/. immich_machine_learning:/cache/clip/MODEL_NAME/""",
    "fastembed": """from fastembed import ImageEmbedding, TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(model="student", pooling=PoolingType.DISABLED, normalization=True,
    sources=ModelSource(hf="none/none"), dim=WIDTH, model_file="model.onnx")
text = TextEmbedding("student", specific_model_path="FOLDER/text")
image = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path="FOLDER/image")""",
    "transformers.js": """import { AutoTokenizer, CLIPTextModelWithProjection, env } from "@huggingface/transformers";
env.localModelPath = "PARENT_OF_FOLDER/"; env.allowRemoteModels = false;
const tokenizer = await AutoTokenizer.from_pretrained("NAME");
const model = await CLIPTextModelWithProjection.from_pretrained("NAME", { dtype: "DTYPE" });
const { text_embeds } = await model(tokenizer(["a dog"], { padding: "max_length", truncation: true }));""",
}
ANY = """import clip_distill as cd
model = cd.load("FOLDER")
scores = model.encode_text(["a dog"]) @ model.encode_image(["photo.jpg"]).T"""
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
    return {"student": students[tower], "parameters": count_parameters(module)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _card(record: dict[str, Any], given: Given) -> str:
    target = resolve("export", TARGETS, record["target"])
    licence = target.licence if isinstance(target, Target) else ""
    code = USE.get(record["target"], ANY).replace("WIDTH", str(given.text[0].embed_dim))
    code = code.replace("DTYPE", DTYPES[record["weights"]])
    rows = []
    for tower, facts in record["towers"].items():
        whose = "student, 学生" if facts["student"] else "teacher's own, 老师原有的"
        cosine = facts.get("least_cosine_to_torch")
        rows.append(f"| {tower} | {whose} | {facts['parameters'] / 1e6:.2f}M | {'' if cosine is None else cosine} |")
    size = sum(file["bytes"] for file in record["files"].values()) / 1e6
    teacher, dim = record["teacher"], given.text[0].embed_dim
    compared = f"{record['compared_on']['photos']} photos, {record['compared_on']['captions']} captions"
    return f"""---
library_name: clip-distill
pipeline_tag: zero-shot-image-classification
tags: [clip, distillation, {record["target"]}]
---
# {record["target"]}: image and text encoder, {size:.1f} MB ({record["weights"]})

Distilled by CLIP Distill from the teacher `{teacher["name"]}` (weights SHA-256 `{teacher["weights_sha256"][:16]}…`).
Its embedding space of {dim} numbers is kept, so its index stays. The teacher's licence holds for what was learnt from
it: look it up before you pass this on. {licence}

由 CLIP Distill 从老师模型 `{teacher["name"]}` 蒸馏得到，沿用其 {dim} 维的向量空间，已有的索引可以继续用。
老师模型的许可证同样约束学到的权重：转发之前请先查看。

| tower 编码器 | whose 来源 | parameters 参数 | least cosine to torch 与 torch 的最小余弦 |
| --- | --- | ---: | ---: |
{chr(10).join(rows)}

Compared on noise, made-up captions, and {compared} of the exporter's own. What the students keep of the teacher is not
in this file: `clip-distill evaluate` measures it. export.json has the SHA-256 of every file.
比较用的是噪声图、自编句子，以及导出者自己的照片和句子。学生保留了老师的多少，请用 `clip-distill evaluate` 测量。

```
{code}
```

Limits: a student knows best what it was trained on; other words and photos are found less reliably.
局限：学生最熟悉训练数据那一类内容，对其他词语和照片的检索会差一些。
"""
