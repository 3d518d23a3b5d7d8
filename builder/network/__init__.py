"""The ResNet in PyTorch: its architectures, weights and files, finetuning, and the export to ONNX.

In scope: the network as it was before any compression, and reading back what a compression left. Not in scope:
changing it (`compress/`). Read `resnet.py` first.
"""
