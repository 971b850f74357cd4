"""What a tower costs where it runs: speed, memory and size, in torch and in ONNX Runtime.

Each variant is measured in a process of its own, so what one has loaded is not counted for another. `job` and
`in_onnx` import neither torch nor the rest of the package: a process that runs an ONNX file is as small as it will be
in a program that needs nothing else.
"""
