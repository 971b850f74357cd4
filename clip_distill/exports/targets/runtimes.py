"""Two files for one's own program, in the format of a runtime that phones, laptops and edge boxes have."""

from __future__ import annotations

from clip_distill.exports.target import ImageFile, Target, TextFile

IMAGE = ImageFile("image", "pixels", "image_features")
FREE = TextFile("text", "tokens", "text_features")
WHOLE = TextFile("text", "tokens", "text_features", dtype="int32", length="context")  # one text, all C places


def _files(name: str, program: str, text: TextFile) -> Target:
    """A runtime's own target has its name."""
    return Target(name=name, program=program, image=IMAGE, text=text, unit=False, runtime=name)


ORT = _files("ort", "ONNX Runtime's small builds for Android and iOS", FREE)
OPENVINO = _files("openvino", "OpenVINO: Intel's CPUs, graphics and NPUs", FREE)
EXECUTORCH = _files("executorch", "ExecuTorch with XNNPACK: PyTorch's runtime for phones, one sample a time", WHOLE)
LITERT = _files("litert", "LiteRT (TensorFlow Lite): Android and boards, one sample a time", WHOLE)
COREML = _files(
    "coreml",
    "Core ML, iOS 16 and macOS 13 or later, one sample a time; written here, it can be run on Apple's alone",
    WHOLE,
)
