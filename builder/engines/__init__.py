"""Engines: what runs a graph, one kind a file.

`openvino` runs the ONNX file itself on a CPU; `tensorrt-rtx` compiles it ahead of time for NVIDIA GPUs, with or
without one; `tensorrt` compiles it on the GPU that will run it. What the last two have in common is in `nvidia.py`
and `compile.py`. Read `kind.py` first.
"""
