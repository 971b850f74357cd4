"""Two files for one's own program, in the format of a runtime that phones, laptops and edge boxes have."""

from __future__ import annotations

from clip_distill.exports.target import ImageFile, Target, TextFile

IMAGE = ImageFile("image", "pixels", "image_features")
FREE = TextFile("text", "tokens", "text_features")
WHOLE = TextFile("text", "tokens", "text_features", dtype="int32", length="context")  # one text, all C places

ORT = Target(
    name="ort",
    program="ONNX Runtime's small builds for Android and iOS",
    image=IMAGE,
    text=FREE,
    unit=False,
    runtime="ort",
)
OPENVINO = Target(
    name="openvino",
    program="OpenVINO: Intel's CPUs, graphics and NPUs",
    image=IMAGE,
    text=FREE,
    unit=False,
    runtime="openvino",
)
EXECUTORCH = Target(
    name="executorch",
    program="ExecuTorch with XNNPACK: PyTorch's runtime for phones, one sample a time",
    image=IMAGE,
    text=WHOLE,
    unit=False,
    runtime="executorch",
)
LITERT = Target(
    name="litert",
    program="LiteRT (TensorFlow Lite): Android and boards, one sample a time",
    image=IMAGE,
    text=WHOLE,
    unit=False,
    runtime="litert",
)
COREML = Target(
    name="coreml",
    program="Core ML, iOS 16 and macOS 13 or later, one sample a time; written here, it can be run on Apple's alone",
    image=IMAGE,
    text=WHOLE,
    unit=False,
    runtime="coreml",
)
