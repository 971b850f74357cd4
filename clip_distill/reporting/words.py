"""What a report says, in English and Chinese."""

from __future__ import annotations

from typing import Any

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "title": "What the student kept",
        "teacher": "teacher", "student": "student", "difference": "difference",
        "image": "image student", "text": "text student", "both": "both students",
        "recalls": "Recall of teacher and student, with 95% intervals",
        "recall_note": "Text→image asks with a caption for its photo, image→text with a photo for one of its captions. "
        "Intervals: the photos are drawn anew 1,000 times, the same ones for both.",
        "cosine": "cosine to the teacher", "cosines": "How near each embedding is to the teacher's",
        "neighbours": "of the 10 nearest neighbours are the teacher's",
        "lost": "Queries that lost most", "gained": "Queries that gained most",
        "rank": "rank of the right photo", "right": "right photo", "none": "None did.",
        "curves": "Training", "step": "step", "loss": "loss", "mean recall": "mean recall, %",
        "learning rate": "learning rate",
        "similarities": "Cosines of captions with photos", "photos": "photos", "captions": "captions",
        "leaks": "What validation shares with training",
        "leaked_photos": "photos of which training has nearly the same",
        "leaked_captions": "captions that stand in both", "of": "of",
        "without": "Mean recall without those photos' questions, %", "validation": "validation photo",
        "training": "training photo",
        "made": "What made it", "parameters": "parameters", "files": "file", "of_teacher": "of the teacher's",
        "mean_recall": "mean recall, %", "by_size": "Mean recall by size", "measure": "measure",
        "same_split": "The epoch was chosen on the same photos: on others expect a little less. --test DIR measures.",
        "tested": "No epoch was chosen on these photos.",
        "by_cosine": "by the teacher's cosine", "by_hash": "by a perceptual hash of near neighbours", "bits": "bits",
        "one_image": "one photo", "one_text": "one caption", "encoding": "decoding not counted",
        "trained": "trained in",
        "interval": "95% interval", "data": "data", "machine": "machine", "versions": "versions", "store": "store",
    },
    "zh": {
        "title": "学生保留了什么",
        "teacher": "教师", "student": "学生", "difference": "差",
        "image": "图像学生", "text": "文本学生", "both": "两个学生",
        "recalls": "教师与学生的召回率，带 95% 区间",
        "recall_note": "文→图：用一条描述找它的照片；图→文：用一张照片找它的描述之一。"
        "区间：照片重新抽取 1,000 次，两者用同样的照片。",
        "cosine": "与教师的余弦", "cosines": "每个向量离教师的有多近",
        "neighbours": "的 10 个最近邻与教师相同",
        "lost": "变差最多的查询", "gained": "变好最多的查询",
        "rank": "正确照片的名次", "right": "正确的照片", "none": "没有。",
        "curves": "训练过程", "step": "步", "loss": "损失", "mean recall": "平均召回率，%", "learning rate": "学习率",
        "similarities": "描述与照片的余弦", "photos": "照片", "captions": "描述",
        "leaks": "验证与训练的重叠", "leaked_photos": "训练里有几乎相同照片的验证照片",
        "leaked_captions": "两边都有的描述", "of": "共",
        "without": "去掉这些照片的查询后的平均召回率，%", "validation": "验证照片", "training": "训练照片",
        "made": "由什么得到", "parameters": "参数", "files": "文件", "of_teacher": "（占教师的）",
        "mean_recall": "平均召回率，%", "by_size": "平均召回率与大小", "measure": "指标",
        "same_split": "最佳 epoch 是在同一批照片上选的：换成别的照片会略低一些。可以用 --test 目录 检验。",
        "tested": "这些照片没有参与 epoch 的选择。",
        "by_cosine": "按教师的余弦", "by_hash": "按近邻的感知哈希", "bits": "位不同",
        "one_image": "一张照片", "one_text": "一条描述", "encoding": "不含解码", "trained": "训练用时",
        "interval": "95% 区间", "data": "数据", "machine": "机器", "versions": "版本", "store": "库",
    },
}  # fmt: skip


def verdict(kind: str, found: dict[str, Any], language: str) -> str:
    """One sentence: what is kept, and whether the difference is more than chance."""
    value, low, high = found["recall"]["mean_recall"]["difference"]
    kept = "–" if found["kept"] is None else f"{found['kept']:.0f}%"
    size = ""
    if found.get("parameters") and found.get("teacher_parameters"):
        share = 100 * found["parameters"] / found["teacher_parameters"]
        size = f", with {share:.0f}% of the teacher's parameters" if language == "en" else f"，参数为其 {share:.0f}%"
    who = WORDS[language][kind]
    if language == "en":
        worth = "no less is found" if low <= 0 <= high else "more is found" if low > 0 else "less is found"
        who = "Both students together keep" if kind == "both" else f"The {who} keeps"
        return (
            f"{who} {kept} of the teacher's mean recall{size}: {worth} ({value:+.1f} points, 95% interval "
            f"{low:+.1f} to {high:+.1f})."
        )
    worth = "找到的并不更少" if low <= 0 <= high else "找到的更多" if low > 0 else "找到的更少"
    return (
        f"{who}保留了教师平均召回率的 {kept}{size}：{worth}（{value:+.1f} 个点，95% 区间 {low:+.1f} 到 {high:+.1f}）。"
    )
