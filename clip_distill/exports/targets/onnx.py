"""Two ONNX files for one's own program."""

from __future__ import annotations

from clip_distill.exports.target import ImageFile, Target, TextFile

ONNX = Target(
    name="onnx",
    program="your own program, by ONNX Runtime; towers.json says how the files are fed",
    image=ImageFile("image", "pixels", "image_features"),
    text=TextFile("text", "tokens", "text_features"),
    unit=False,
)

ONNX_UINT8 = Target(
    name="onnx-uint8",
    program="your own program, with pixels as a camera or a decoder gives them: normalising is inside",
    image=ImageFile("image", "pixels", "image_features", dtype="uint8", layout="NHWC"),
    text=TextFile("text", "tokens", "text_features"),
)
