"""Engines: what runs a graph, one kind a file.

`openvino` runs the ONNX file itself on a CPU; `tensorrt-rtx` compiles it ahead of time for NVIDIA GPUs, with or
without one; `tensorrt` compiles it on the GPU that will run it. The last two are one code path, `tensorrt.py`.
Read `kind.py` first.
"""
