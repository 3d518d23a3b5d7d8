"""Part `training`: images per second of a training step, as builder/network/train.py takes it and otherwise.

The images lie on the GPU, so a row is the step alone; what the data loader delivers is a row of its own. A row is
three rounds one after the other, and what was allocated at most.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from benchmarks.gpu.context import IMAGE_SIZE, Context, Results
from benchmarks.gpu.networks import NUM_CLASSES, build_network, make_images, serve
from temper.builder.data.config import DataConfig
from temper.builder.data.encoded import EncodedImages, Files
from temper.builder.data.sources import Source, TrainImages
from temper.builder.network import train
from temper.builder.network.adversarial import AdversarialConfig, Method

# A row is not begun with less.
_LEAST_S = 8.0
_WARM_UP = 3
# A round is so many times as long as one of inference.
_LENGTHS = 3.0
# Random labels teach nothing, and a loss that is not finite would not be that of a training.
_LEARNING_RATE, _NUM_STEPS = 1e-6, 1_000_000
_RANGE_OF_INPUTS = 4.0
_NUM_FILES = 16
# Timed are so many times the batches that the data loader's processes hold ready; an epoch has more.
_LOADED, _NUM_BATCHES = 4, 100

Step = Callable[[], object]


def run(context: Context, results: Results) -> None:
    """Measure row by row, the important ones first, until the time is up."""
    results.begin(rounds=context.rounds, seconds=_LENGTHS * context.seconds)
    for key, measure in _plan(context):
        if results.has(key):
            continue
        if context.left_s < _LEAST_S:
            results.end("stopped", f"no time left before {key}; run again to go on")
            return
        results.attempt(key)
        try:
            row = measure()
        except Exception as error:  # out of memory, or a kernel that is not there: the other rows do not need it
            row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:400]}
        gc.collect()
        if context.device.startswith("cuda"):
            torch.cuda.synchronize()  # an error that stays ends the process here, and the next one leaves this out
            torch.cuda.empty_cache()
        results.put(key, row)
        shown = f"{row['ips']:.0f}/s" if "ips" in row else row["error"]
        print(f"{key}: {shown}", file=sys.stderr, flush=True)
    results.end("complete")


def _plan(context: Context) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    arch = (context.archs or ("resnet50",))[0]
    batches = context.batches or (128, 256)
    cells = [(arch, context.image_size, batch, _NAMES[index > 0]) for index, batch in enumerate(batches)]
    if not context.archs and context.image_size == IMAGE_SIZE:
        cells.append(("resnet18", 64, 256, _NAMES[1]))
    for arch, size, batch, names in cells:
        for name in names:
            measure = functools.partial(_measure, context, arch, size, batch, _STEPS[name])
            yield f"{arch} {size} {batch} {name}", measure
        if (arch, size, batch) == cells[0][:3]:
            yield f"{arch} {size} {batch} data loader alone", functools.partial(_load, context, batch)


def _measure(
    context: Context, arch: str, size: int, batch: int, make: Callable[[Trainer], Step]
) -> dict[str, Any]:
    on_gpu = context.device.startswith("cuda")
    wait: Step = torch.cuda.synchronize if on_gpu else lambda: None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    tuned = torch.backends.cudnn.benchmark
    try:
        step = make(Trainer.create(arch, size, batch, context.device))
        for _ in range(_WARM_UP):
            step()
        wait()
        begin = time.perf_counter()
        step()
        wait()
        count = max(1, round(_LENGTHS * context.seconds / (time.perf_counter() - begin)))
        rounds = []
        for _ in range(context.rounds):
            begin = time.perf_counter()
            for _ in range(count):
                step()
            wait()
            rounds.append(count * batch / (time.perf_counter() - begin))
    finally:
        torch.backends.cudnn.benchmark = tuned
    ips = statistics.median(rounds)
    peak = torch.cuda.max_memory_allocated() >> 20 if on_gpu else None
    return {"error": None, "ips": ips, "ms": 1e3 * batch / ips, "rounds": rounds, "peak_mib": peak}


@dataclass
class Trainer:
    """A network in training, with images and labels on the device."""

    state: train._State
    config: train.TrainConfig
    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def create(cls, arch: str, size: int, batch: int, device: str) -> Trainer:
        """Makes it as `temper.builder.network.train` would."""
        config = train.TrainConfig(epochs=1, batch_size=max(2, batch), learning_rate=_LEARNING_RATE)
        on = torch.device(device)
        served = serve(_network(arch)).to(on)
        if on.type == "cuda":
            served.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks this form
        images = torch.from_numpy(make_images(batch, size)).to(on)
        labels = torch.arange(batch, device=on) % NUM_CLASSES
        loss = train._cross_entropy(config)
        state = train._State(served.train(), train._new_optimizer(served, config), on, loss)
        return cls(state, config, images, labels)

    def step(self) -> None:
        """A step of the project's own."""
        train._step(self.state, self.images, self.labels, self.config, _NUM_STEPS)

    def loss(self, images: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        """The loss of images, with autocast to a type where one is given."""
        with torch.autocast(self.state.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.state.served(images)
        return cross_entropy(logits.float(), self.labels, label_smoothing=self.config.label_smoothing)

    def step_in(self, dtype: torch.dtype | None) -> None:
        """The same step with autocast to another type, or none."""
        train._set_phase(self.state.served, head_only=False)
        self.loss(self.images, dtype).backward()  # type: ignore[no-untyped-call]  # torch has no types here
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)


@functools.lru_cache(maxsize=1)
def _weights(arch: str) -> dict[str, torch.Tensor]:
    return build_network(arch).state_dict()


def _network(arch: str) -> nn.Module:
    """The network of the other parts, whose weights take seconds to make."""
    from torchvision import models  # type: ignore[import-untyped]  # ships none

    network: nn.Module = getattr(models, arch)()
    network.load_state_dict(_weights(arch))
    return network


def _own(trainer: Trainer) -> Step:
    return trainer.step


def _tuned(trainer: Trainer) -> Step:
    torch.backends.cudnn.benchmark = True
    return trainer.step


def _single(trainer: Trainer) -> Step:
    """Float32, whose convolutions PyTorch computes in TensorFloat-32."""
    return lambda: trainer.step_in(None)


def _scaled_half(trainer: Trainer) -> Step:
    """Float16 with a scaler; nothing waits, as a fused optimizer itself leaves out a step that overflowed."""
    scaler = torch.amp.GradScaler(trainer.state.device.type)

    def step() -> None:
        train._set_phase(trainer.state.served, head_only=False)
        scaler.scale(trainer.loss(trainer.images, torch.float16)).backward()  # type: ignore[no-untyped-call]  # torch has no types here
        scaler.step(trainer.state.optimizer)
        scaler.update()
        trainer.state.optimizer.zero_grad(set_to_none=True)

    return step


class FakeWeights(nn.Module):
    """Rounds a convolution's weights to int8, a scale for each output; the gradient goes straight through."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the weights as int8 would hold them."""
        scale = weight.detach().abs().amax((1, 2, 3)).clamp(min=1e-8) / 127
        # Zero points that are integers would be fetched from the GPU, to be checked.
        return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale), 0, -127, 127)


def _fake_inputs(_: nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Rounds a convolution's input to int8, by one scale, in float32: CUDA has no kernel for bfloat16."""
    return torch.fake_quantize_per_tensor_affine(given[0].float(), _RANGE_OF_INPUTS / 127, 0, -127, 127)


def _quantised(trainer: Trainer) -> Step:
    for module in list(trainer.state.served.modules()):
        if isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", FakeWeights())
            module.register_forward_pre_hook(_fake_inputs)
    trainer.state.optimizer = train._new_optimizer(trainer.state.served, trainer.config)
    return trainer.step


def _adversarial(method: Method, trainer: Trainer) -> Step:
    """The project's own adversarial training."""
    config = dataclasses.replace(trainer.config, adversarial=AdversarialConfig(method=method))
    trainer.state.losses = train._new_losses(trainer.state, config, NUM_CLASSES)
    return trainer.step


_OWN = "as builder/network/train.py"
_QAT = "QAT, torch.fake_quantize on weights and inputs"
_STEPS: dict[str, Callable[[Trainer], Step]] = {
    _OWN: _own,
    f"{_OWN}, cudnn.benchmark": _tuned,
    _QAT: _quantised,
    "adversarial, fast FGSM": functools.partial(_adversarial, "fast"),
    "adversarial, PGD-7": functools.partial(_adversarial, "pgd"),
    "adversarial, TRADES-10": functools.partial(_adversarial, "trades"),
    "fp32, channels last": _single,
    "fp16 with a gradient scaler": _scaled_half,
}
# The first batch is measured in every way, another in those that matter.
_NAMES = (tuple(_STEPS), (_OWN, f"{_OWN}, cudnn.benchmark"))


def _load(context: Context, batch: int) -> dict[str, Any]:
    """What the project's data loader delivers from JPEGs of 500 x 375, decoded, cropped at random and mirrored."""
    folder = context.work / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_write_photo(folder / f"{number}.jpg", number) for number in range(_NUM_FILES)]
    config = train.TrainConfig(batch_size=max(2, batch))
    indices = np.arange(_NUM_BATCHES * config.batch_size)
    images = EncodedImages(f"data {folder}", Files(folder, paths), indices % _NUM_FILES, 500 * 375)
    how = DataConfig(image_size=context.image_size).preprocessing
    source = Source(["0", "1"], indices % 2, indices, indices[:0], how, images)
    loader = train._loader(
        TrainImages(source, "crop-flip"), config, torch.device(context.device.partition(":")[0]), 0
    )
    batches = iter(loader)
    num_ready = loader.num_workers * (loader.prefetch_factor or 0)
    for _ in itertools.islice(batches, num_ready):
        pass  # some of them were made before a clock could start
    begin = time.perf_counter()
    num_images = sum(len(labels) for _, labels in itertools.islice(batches, _LOADED * num_ready))
    ips = num_images / (time.perf_counter() - begin)
    return {"error": None, "ips": ips, "num_workers": loader.num_workers, "peak_mib": None}


def _write_photo(path: Path, number: int) -> Path:
    pixels = make_images(1, 512)[0, :375, :500]
    Image.fromarray(np.roll(pixels, 16 * number, axis=1)).save(path, quality=90)
    return path
