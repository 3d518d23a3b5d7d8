"""What the rooms of the builder, the model repository and every client agree on: names of tensors and of files."""

from __future__ import annotations

# The wire: the export, config.pbtxt and the plugin share these.
INPUT_NAME = "image"
OUTPUT_NAME = "logits"
ENCODED_NAME = "encoded"
"""The input of a model that takes image files as they are."""
NUM_CHANNELS = 3

# The data stage.
TEST_IMAGES_FILE = "test_images.npy"
TEST_LABELS_FILE = "test_labels.npy"
CALIBRATION_IMAGES_FILE = "calibration_images.npy"
LABELS_FILE = "labels.txt"
"""Class names, in the data stage and in the repository."""

# A network, and a graph with PyTorch's logits for the images that it is verified on.
WEIGHTS_FILE = "weights.safetensors"
NETWORK_FILE = "network.json"
GRAPH_FILE = "model.onnx"
REFERENCE_FILE = "reference_logits.npy"
OWNER_LOGITS_FILE = "owner_logits.npy"
"""What the network answers to the raw files, read and transformed by torchvision."""
SNAPSHOT_FILE = "snapshots/epoch-{:03d}.safetensors"
"""The weights after an epoch of the finetuning, counted from 1."""

# An entry of the model repository.
CONFIG_FILE = "config.pbtxt"
CARD_FILE = "card.json"
DIGESTS_FILE = "SHA256SUMS"
VERDICT_FILE = "verdict.json"
"""In a version's folder, given after its publication, so that DIGESTS_FILE does not name it."""
HISTORY_FILE = "history.jsonl"
"""Beside the versions: which of them was served when."""
