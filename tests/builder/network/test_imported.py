"""Checkpoints of many makes: each loads with its maker's own logits, or is refused with the line that helps.

Long because it is one table of makers, each with the few lines that only it needs.
"""

from __future__ import annotations

import argparse
import copy
import json
import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from temper.builder.errors import ModelError
from temper.builder.network.imported import open_checkpoint
from temper.builder.network.resnet import ModelConfig, build_model

NAMES = ["ant", "bee", "cat"]


def settle(network: nn.Module, seed: int = 0) -> Any:
    """Gives batch normalisation statistics of its own, so that answers depend on all layers."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return network.eval()


@cache
def own(seed: int = 0, arch: str = "resnet18") -> Any:
    """A network of torchvision's; not to be changed."""
    import torchvision  # type: ignore[import-untyped]  # ships none

    torch.manual_seed(seed)
    return settle(torchvision.models.get_model(arch, weights=None, num_classes=3), seed)


def state(network: Any = None, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in (own() if network is None else network).state_dict().items()}


def with_head(head: nn.Module) -> Any:
    network = copy.deepcopy(own())
    network.fc = head
    return network.eval()


class Wrapped(nn.Module):
    """A network as an attribute, with whatever else a training keeps."""

    def __init__(self, **parts: nn.Module) -> None:
        """Takes the parts."""
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


Made = tuple[str, nn.Module]
"""A file's or a folder's name, and the network that gives the right logits."""


def saved(
    content: object, network: nn.Module | None = None, name: str = "w.pth", **more: Any
) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        torch.save(content() if callable(content) else content, folder / name, **more)
        return name, network or own()

    return make


@cache
def distributed() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What DistributedDataParallel saves, of a network and of a compiled one."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group(
        "gloo",
        store=torch.distributed.HashStore(),  # type: ignore[attr-defined]  # not in its stub
        rank=0,
        world_size=1,
    )
    try:
        plain = DistributedDataParallel(copy.deepcopy(own())).state_dict()
        both = DistributedDataParallel(compiled()).state_dict()
    finally:
        distributed.destroy_process_group()
    assert next(iter(both)).startswith("module._orig_mod.")
    return plain, both


def compiled() -> Any:
    return torch.compile(copy.deepcopy(own()))


def lightning(build: Callable[[], Any], network: Any = None, **hyper: Any) -> Callable[[Path], Made]:
    """A LightningModule, trained for a step, as Lightning writes it."""

    def make(folder: Path) -> Made:
        import pytorch_lightning as pl

        class Module(pl.LightningModule):
            def __init__(self, **hyper: Any) -> None:
                super().__init__()
                self.save_hyperparameters()
                for name, part in build().items():
                    setattr(self, name, part)

        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            max_epochs=1,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        module = Module(**hyper)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(folder / "last.ckpt")
        return "last.ckpt", network or own()

    return make


def weight_averaging(folder: Path) -> Made:
    """Lightning's callback, which puts the averages where the weights were."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import WeightAveraging

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(own())

    module = Module()
    callback: Any = WeightAveraging()
    callback._average_model = AveragedModel(module)
    averaged = copy.deepcopy(callback._average_model.module.net)
    content: dict[str, Any] = {"state_dict": state(own(1), "net."), "pytorch-lightning_version": "2"}
    callback.on_save_checkpoint(None, module, content)
    torch.save(content, folder / "w.ckpt")
    return "w.ckpt", averaged


def averaging() -> Any:
    """Torch's averages, of two networks."""
    average: Any = get_ema_multi_avg_fn
    model = AveragedModel(own(), multi_avg_fn=average(0.9))
    model.update_parameters(own())
    model.update_parameters(own(1))
    return model


@cache
def reference() -> tuple[dict[str, Any], Any]:
    """What torchvision's reference script saves with --model-ema, and the averaged network."""
    model = averaging()
    optimizer = torch.optim.SGD(own().parameters(), 0.1, momentum=0.9)
    content = {
        "model": own().state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "epoch": 1,
        "args": argparse.Namespace(lr=0.1, model="resnet18", output_dir=pathlib.Path("out")),
        "model_ema": model.state_dict(),
    }
    return content, model.module.eval()


def ema_pytorch(folder: Path) -> Made:
    from ema_pytorch import EMA  # type: ignore[import-untyped]  # ships none

    ema = EMA(copy.deepcopy(own(1)), include_online_model=False)
    torch.save(ema.state_dict(), folder / "ema.pt")
    return "ema.pt", ema.ema_model.eval()


def ema_pytorch_both(folder: Path) -> Made:
    from ema_pytorch import EMA

    ema = EMA(copy.deepcopy(own()), update_after_step=0, update_every=1)
    for _ in range(2):
        ema.update()
    settle(ema.ema_model, 3)
    torch.save(ema.state_dict(), folder / "ema.pt")
    return "ema.pt", ema.ema_model


def timm_saver(told: argparse.Namespace | None = None, averaged: bool = True) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        import timm
        from timm.utils.checkpoint_saver import CheckpointSaver
        from timm.utils.model_ema import ModelEmaV3

        network = settle(timm.create_model("resnet18", num_classes=3))
        ema = ModelEmaV3(network)
        settle(ema.module, 1)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        args = told or argparse.Namespace(model="resnet18", lr=0.1)
        make_saver: Any = CheckpointSaver
        saver = make_saver(network, optimizer, args=args, model_ema=ema, checkpoint_dir=str(folder))
        saver.save_checkpoint(0, metric=0.5)
        return "last.pth.tar", ema.module if averaged else network

    return make


def timm_state(arch: str, name: str = "w.pth", **more: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        import timm

        network = settle(timm.create_model(arch, num_classes=3, **more))
        save_file(network.state_dict(), folder / name) if name.endswith("safetensors") else torch.save(
            network.state_dict(), folder / name
        )
        return name, network

    return make


def timm_hub(arch: str, name: str = "hub", safe: Any = True, **more: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        import timm
        from timm.models import save_for_hf

        network = settle(timm.create_model(arch, num_classes=3, **more))
        save_for_hf(network, str(folder / "hub"), safe_serialization=safe, model_config={"label_names": NAMES})
        return name, network

    return make


def transformers_hub(shards: str = "5GB", name: str = "hub", **config: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        from transformers import ResNetConfig, ResNetForImageClassification

        given: dict[str, Any] = {
            "layer_type": "basic",
            "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512],
        }
        classes = {"num_labels": 3, "id2label": dict(enumerate(NAMES))}
        network = settle(ResNetForImageClassification(ResNetConfig(**{**given, **classes, **config})))
        network.save_pretrained(folder / "hub", max_shard_size=shards)
        if name != "hub":
            torch.save({"state_dict": state(network, "model.")}, folder / name)
        return name, network

    return make


def safetensors(folder: Path) -> Made:
    save_file(state(), folder / "w.safetensors")
    return "w.safetensors", own()


def counted() -> dict[str, torch.Tensor]:
    """Thop's buffers, as `profile` leaves them in every module."""
    network = copy.deepcopy(own())
    for module in network.modules():
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return state(network)


@cache
def grey() -> Any:
    network = copy.deepcopy(own())
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return network.eval()


def encoder() -> tuple[dict[str, torch.Tensor], Any]:
    """A body as a Sequential of children, and a head of its own."""
    wrapped = Wrapped(encoder=nn.Sequential(*list(own().children())[:-1]), classifier=own().fc)
    return state(wrapped), own()


def metrics() -> dict[str, nn.Module]:
    from torchmetrics.classification import MulticlassAccuracy

    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    accuracy = MulticlassAccuracy(3)
    accuracy.persistent(True)
    return {"model": copy.deepcopy(own()), "loss": loss, "val_acc": accuracy}


def omega() -> dict[str, Any]:
    from omegaconf import OmegaConf

    return {"state_dict": state(), "cfg": OmegaConf.create({"model": {"arch": "resnet18"}, "lr": [0.1]})}


def sequential(head: nn.Sequential) -> dict[str, torch.Tensor]:
    """A body and its head as one Sequential of children."""
    return nn.Sequential(*list(own().children())[:-1], nn.Flatten(), *head).state_dict()


UNBIASED = nn.Linear(512, 3, bias=False)
LINEAR = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 3))
TWO = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))
NAMED = nn.Sequential()
for _name, _part in (("fc1", nn.Linear(512, 20)), ("relu", nn.ReLU()), ("fc2", nn.Linear(20, 3))):
    NAMED.add_module(_name, _part)


@dataclass(frozen=True)
class Loads:
    """A checkpoint that loads."""

    make: Callable[[Path], Made]
    says: str
    """What its description holds."""
    config: dict[str, Any] = field(default_factory=dict)
    grey: bool = False
    class_names: bool = False


LOADS: dict[str, Loads] = {
    "state dict": Loads(saved(state), "torch.save file"),
    "of before zip": Loads(saved(state, _use_new_zipfile_serialization=False), "torch.save file"),
    "safetensors": Loads(safetensors, "safetensors file"),
    "DDP": Loads(saved(lambda: distributed()[0]), "prefix `module.`"),
    "compiled": Loads(saved(lambda: state(compiled())), "torch.save file, `_orig_mod.` left out"),
    "DDP of compiled": Loads(saved(lambda: {"model": distributed()[1]}), "`model`, prefix `module.`"),
    "a compiled layer": Loads(
        saved({k.replace("layer1.", "layer1._orig_mod."): v for k, v in state().items()}), ""
    ),
    "net.": Loads(saved(lambda: {"net": state(Wrapped(net=own()))}), "`net`, prefix `net.`"),
    "deep prefix": Loads(saved(lambda: state(Wrapped(a=Wrapped(b_1=own())))), "prefix `a.b_1.`"),
    **{
        f"under {key}": Loads(saved({key: state(), "epoch": 3}), f"`{key}`")
        for key in ("model_state_dict", "network", "weights", "G")
    },
    "nested twice": Loads(saved({"checkpoint": {"model": state()}}), "`checkpoint.model`"),
    "Lightning": Loads(
        lightning(lambda: {"model": own()}, lr=0.1), "Lightning checkpoint, `state_dict`, prefix `model.`"
    ),
    "Lightning backbone": Loads(
        lightning(lambda: {"backbone": with_head(nn.Identity()), "classifier": own().fc}),
        "prefix `backbone.`, head `classifier`",
    ),
    "Lightning metrics": Loads(lightning(metrics), "prefix `model.`, left out: loss, val_acc"),
    "Lightning averages": Loads(weight_averaging, "averaged (EMA) weights used", {"averaged": True}),
    "reference, averaged": Loads(saved(lambda: reference()[0], reference()[1]), "`model_ema`", {"averaged": True}),
    "reference, raw": Loads(saved(lambda: reference()[0]), "averaged ones beside not used", {"averaged": False}),
    "AveragedModel": Loads(
        saved(lambda: averaging().state_dict(), averaging().module), "averaged (EMA) weights used"
    ),
    "ema_pytorch": Loads(ema_pytorch, "prefix `ema_model.`, averaged (EMA) weights used"),
    "ema_pytorch, both": Loads(ema_pytorch_both, "prefix `ema_model.`", {"averaged": True}),
    "same weights twice": Loads(saved({"state_dict": state(), "best": state()}), "`state_dict`"),
    "timm's saver, averaged": Loads(timm_saver(), "training checkpoint, `state_dict_ema`", {"averaged": True}),
    "timm's saver, raw": Loads(timm_saver(None, False), "training checkpoint, `state_dict`", {"averaged": False}),
    "timm resnet10t": Loads(timm_state("resnet10t"), "torch.save file"),
    "timm resnet14t": Loads(timm_state("resnet14t", "w.safetensors"), "safetensors file"),
    "timm resnet18d": Loads(timm_hub("resnet18d"), "timm model, names of 3 classes", class_names=True),
    "timm resnet18d, file": Loads(timm_hub("resnet18d", "hub/model.safetensors"), "timm model", class_names=True),
    "timm resnet26": Loads(timm_hub("resnet26", safe=False), "timm model", class_names=True),
    "timm resnet50s": Loads(timm_state("resnet50s"), "torch.save file"),
    "timm resnext50d_32x4d": Loads(timm_state("resnext50d_32x4d"), "torch.save file"),
    "timm, one channel": Loads(timm_state("resnet18d", in_chans=1), "reads grey images", grey=True),
    "Hugging Face": Loads(transformers_hub(), "Hugging Face model, prefix `resnet.`", class_names=True),
    "Hugging Face, shards": Loads(transformers_hub("10MB"), "Hugging Face model", class_names=True),
    "Hugging Face, bottleneck": Loads(
        transformers_hub(layer_type="bottleneck", hidden_sizes=[256, 512, 1024, 2048]),
        "Hugging Face model",
        class_names=True,
    ),
    "Hugging Face in Lightning": Loads(
        transformers_hub(name="w.ckpt"), "prefix `model.resnet.`, head `model.classifier.1`"
    ),
    "half": Loads(
        saved(lambda: state(copy.deepcopy(own()).half()), copy.deepcopy(own()).half().float()), "float16"
    ),
    "double": Loads(saved(lambda: state(copy.deepcopy(own()).double())), "float64 as float32"),
    "no counters": Loads(saved({k: v for k, v in state().items() if "num_batches" not in k}), ""),
    "thop": Loads(saved(counted), "torch.save file"),
    "Dropout, Linear": Loads(saved(lambda: state(with_head(LINEAR)), with_head(LINEAR)), "head `fc.1`"),
    "Linear, ReLU, Linear": Loads(
        saved(lambda: state(with_head(TWO)), with_head(TWO)),
        "head `fc` of two layers, taken to have a ReLU between",
    ),
    "named layers": Loads(saved(lambda: state(with_head(NAMED)), with_head(NAMED)), "head `fc` of two layers"),
    "no bias": Loads(saved(lambda: state(with_head(UNBIASED)), with_head(UNBIASED)), "head `fc` without a bias"),
    "no bias, beside": Loads(
        saved(lambda: state(Wrapped(net=with_head(nn.Identity()), proj=UNBIASED)), with_head(UNBIASED)),
        "prefix `net.`, head `proj` without a bias",
    ),
    "one channel": Loads(saved(lambda: state(grey()), grey()), "reads grey images", grey=True),
    "children and head": Loads(saved(lambda: sequential(LINEAR), with_head(LINEAR)), "head `11`"),
    "children and two": Loads(saved(lambda: sequential(TWO), with_head(TWO)), "head of two layers"),
    "children": Loads(saved(lambda: encoder()[0]), "prefix `encoder.`, head `classifier`"),
    "numpy scalar": Loads(saved({"model": state(), "best_acc": np.float64(0.9), "curve": np.ones(3)}), "`model`"),
    "omegaconf": Loads(saved(omega), "`state_dict`"),
    "class names": Loads(
        saved({"model": state(), "class_to_idx": {"bee": 1, "ant": 0, "cat": 2}}), "names of", class_names=True
    ),
    "class names in ImageNet's form": Loads(
        saved(lambda: {"model": state(), "idx_to_class": {n: [name, "a"] for n, name in enumerate(NAMES)}}),
        "names of",
        class_names=True,
    ),
    "class names in meta": Loads(
        saved({"meta": {"CLASSES": tuple(NAMES)}, "state_dict": state()}), "", class_names=True
    ),
}


def logits_of(network: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = network(images)
    result: torch.Tensor = getattr(found, "logits", found)
    return result


@pytest.mark.filterwarnings("ignore")  # the makers' own
@pytest.mark.parametrize("row", LOADS.values(), ids=LOADS.keys())
def test_checkpoint_gives_its_makers_logits(tmp_path: Path, row: Loads) -> None:
    name, network = row.make(tmp_path)
    path = tmp_path / name
    checkpoint = open_checkpoint(path, row.config.get("averaged"))
    config = ModelConfig(arch=checkpoint.arch, weights=str(path), **row.config)
    images = torch.randn(2, 3, 41, 56, generator=torch.Generator().manual_seed(1))
    expected = logits_of(network.eval(), as_grey(images) if row.grey else images)
    found = logits_of(build_model(config, 3), images)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float(expected.std()) > 0, "logits that do not tell images and classes apart prove nothing"
    assert row.says in checkpoint.description and checkpoint.description.isprintable()
    assert checkpoint.num_classes == 3
    assert checkpoint.class_names == (NAMES if row.class_names else None)


def named(arch: str, **more: Any) -> Callable[[Path], Made]:
    return saved(lambda: {"state_dict": state(), "arch": arch, **more})


SCRIPT = argparse.Namespace(model="resnet18", img_size=160, mean=[0.5], std=None, crop_pct=None, interpolation="")
# Whose network it is, and what timm's script was told.
LIBRARIES: dict[str, tuple[Callable[[Path], Made], str | None, dict[str, Any]]] = {
    "nobody's": (named("resnet18"), None, {}),
    "torchvision's script": (saved(lambda: reference()[0]), None, {}),
    "another script": (named("resnet18", args=argparse.Namespace(img_size=160)), None, {}),
    "a script with timm's words": (named("resnet18", args={"crop_pct": 0.9, "mean": "imagenet"}), None, {}),
    "timm's script": (timm_saver(SCRIPT), "timm", {"img_size": 160, "mean": [0.5]}),
    "timm's saver": (timm_saver(argparse.Namespace(model="x", img_size=160)), "timm", {"img_size": 160}),
    "timm's saver alone": (timm_saver(), "timm", {}),
    "timm's layers": (timm_state("resnet18d"), "timm", {}),
    "timm's name": (named("tv_resnet18"), "timm", {}),
    "timm's weights": (saved(lambda: {"model": state(), "model_name": "resnet18.a1_in1k"}), "timm", {}),
    "timm's name in Lightning": (lightning(lambda: {"net": own()}, arch="resnet18.a1_in1k"), "timm", {}),
    "timm's folder": (timm_hub("resnet18"), "timm", {}),
    "Hugging Face's": (transformers_hub(), "huggingface", {}),
}


@pytest.mark.filterwarnings("ignore")  # the makers' own
@pytest.mark.parametrize(("make", "library", "args"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_whose_network_it_is(
    tmp_path: Path, make: Callable[[Path], Made], library: str | None, args: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(tmp_path / make(tmp_path)[0], prefer_averaged=True)
    assert (checkpoint.library, checkpoint.timm_args) == (library, args)


def as_grey(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def edited(make: Callable[[Path], Made], **changes: Any) -> Callable[[Path], Made]:
    """A hub's folder whose config.json says something else."""

    def write(folder: Path) -> Made:
        made = make(folder)
        config = folder / "hub" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        return made

    return write


def without(part: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state().items() if not name.startswith(part)}


def headless(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**without("fc."), **{name.replace("__", "."): value for name, value in more.items()}}


class Trainer:
    """What no file can be opened for."""


THREE = nn.Sequential(nn.Linear(512, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3))
NORMED = nn.Sequential(nn.Linear(512, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))
TRUST = "could run any code; where you trust it: python -c .*torch.load..w.pth., 'cpu', weights_only=False.; torch"
AVERAGED = "write averaged = true in .model. for the averaged, or averaged = false"
HEAD = "expected one linear layer, or two with a ReLU between them; .* model.replace_head = true"
# What is made, and the line that it is refused with.
REFUSED: dict[str, tuple[Callable[[Path], Made], str]] = {
    "averaged beside raw": (
        saved(lambda: reference()[0]),
        rf"as trained .`model`. and averaged ones .`model_ema`, .*{AVERAGED}",
    ),
    "timm's saver": (timm_saver(), rf"`state_dict`. and averaged ones .`state_dict_ema`.; {AVERAGED}"),
    "ema_pytorch": (
        ema_pytorch_both,
        rf"prefix `online_model.`. and averaged ones .prefix `ema_model.`.; {AVERAGED}",
    ),
    "Lightning averages": (weight_averaging, AVERAGED),
    "two networks": (
        saved(lambda: state(Wrapped(student=own(), teacher=own(1)))),
        "holds 2 networks, in prefix `student.` and prefix `teacher.`; save the one",
    ),
    "two keys": (
        saved(lambda: {"g": state(), "d": state(own(1))}),
        "holds 2 networks, in `g` and `d`; save the one",
    ),
    "batch norm in the head": (saved(lambda: state(with_head(NORMED))), f"head has a batch normalisation, {HEAD}"),
    "three layers": (saved(lambda: state(with_head(THREE))), f"its head has 3 layers, {HEAD}"),
    "two without between": (
        saved(lambda: state(with_head(nn.Sequential(nn.Linear(512, 9), nn.Linear(9, 3))))),
        "its head has two linear layers and nothing between them, expected a ReLU",
    ),
    "no head": (
        saved(lambda: without("fc.")),
        "has no head; to keep the other layers .* model.replace_head = true",
    ),
    "a head behind": (
        saved(lambda: state(Wrapped(net=own(), out=nn.Linear(3, 3)))),
        "its head gives 3 values, which out.weight may read",
    ),
    "a layer between": (
        saved(lambda: state(Wrapped(net=with_head(nn.Identity()), neck=nn.BatchNorm1d(512), fc=own().fc))),
        "has a head in fc and layers beside it .neck.running_mean.",
    ),
    "other features": (
        saved(lambda: headless(fc__weight=torch.ones(3, 9))),
        "its head takes 9 to 3 features, .* give 512",
    ),
    "other classes": (
        saved(lambda: state(with_head(nn.Linear(512, 4)))),
        "its head has 4 classes, the data has 3",
    ),
    "squeeze and excitation": (
        timm_state("seresnet18"),
        r"is no ResNet .*: has the unknown layer1.0.se.fc1.bias, .*ONNX",
    ),
    "group norm": (
        timm_state("resnet18", norm_layer="groupnorm"),
        "lacks bn1.running_mean, .*; give the model as ONNX",
    ),
    "blur": (
        edited(timm_hub("resnetblur18")),
        "is called resnetblur18: .* but it has layers that torchvision's lacks",
    ),
    "blur in arguments": (
        saved({"state_dict": state(), "args": argparse.Namespace(model="resnetblur18")}),
        "is called resnetblur18: ",
    ),
    "another activation": (
        timm_hub("resnet18", act_layer="silu"),
        'act_layer is "silu", expected "relu"',
    ),
    "stride in the first": (
        transformers_hub(
            layer_type="bottleneck", hidden_sizes=[256, 512, 1024, 2048], downsample_in_bottleneck=True
        ),
        "config.json: downsample_in_bottleneck is true, expected false: torchvision's",
    ),
    "gelu": (transformers_hub(hidden_act="gelu"), 'config.json: hidden_act is "gelu", expected "relu"'),
    "other widths": (
        transformers_hub(hidden_sizes=[64, 96, 128, 160]),
        r"layer2.0.conv1.weight is .*96, 64, 3, 3., exp",
    ),
    "other depths": (
        transformers_hub(depths=[1, 2, 1, 1]),
        "is a ResNet of 1, 2, 1, 1 basic blocks .*has no name",
    ),
    "another model": (
        edited(transformers_hub(), model_type="convnext"),
        'model_type is "convnext", expected "resnet"',
    ),
    "a stem for CIFAR": (
        saved(lambda: {**state(), "conv1.weight": torch.ones(64, 3, 3, 3)}),
        "first convolution is 3x3, as",
    ),
    "four channels": (
        saved(lambda: {**state(), "conv1.weight": torch.ones(64, 4, 7, 7)}),
        r"conv1.weight is .64, 4, 7",
    ),
    "another network": (
        saved({"state_dict": nn.Linear(2, 2).state_dict()}),
        "holds the layers of none of .* 2 weights, w",
    ),
    "quantised": (
        saved(lambda: {**state(), "bn1.weight": torch.ones(64, dtype=torch.int8)}),
        "bn1.weight holds int8 val",
    ),
    "not finite": (
        saved(lambda: {**state(), "bn1.weight": torch.full([64], float("nan"))}),
        "'bn1.weight' holds NaN",
    ),
    "another architecture": (
        timm_state("resnet10t"),
        'is a resnet10t, not a resnet18; set model.arch = "resnet10t"',
    ),
    "a whole model": (
        saved(own),
        rf"is a whole model .torchvision.models.resnet.ResNet, .* {TRUST}.save.c.state_dict",
    ),
    "a model in a dict": (saved(lambda: {"ema": own()}), rf"holds torchvision.* {TRUST}.save.c.'ema'..state_dict"),
    "an object beside": (
        saved(lambda: {"net": state(), "x": Trainer()}),
        rf"holds .*Trainer beside .* {TRUST}.save.c.'net'., ",
    ),
    "a name that is a command": (
        saved(lambda: {'a"; touch x; "': state(), "x": Trainer()}),
        rf"holds .*Trainer beside .* {TRUST}.save.c.'state_dict'., ",
    ),
    "a bare parameter": (
        saved(lambda: {**state(with_head(nn.Identity()), "net."), "weight": torch.ones(3, 512)}),
        "has no head but the parameter weight, of which",
    ),
    "no channels": (
        saved(lambda: {**state(), "conv1.weight": torch.ones(0, 3, 7, 7)}),
        "lacks layers of a ResNet's four stages",
    ),
    "an old file": (
        saved(lambda: {"net": state(), "x": Trainer()}, _use_new_zipfile_serialization=False),
        rf"holds .*Trainer beside .* {TRUST}.save.c.'net'., ",
    ),
}


@pytest.mark.filterwarnings("ignore")  # the makers' own
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_checkpoint_is_refused_with_the_line_that_helps(
    tmp_path: Path, make: Callable[[Path], Made], message: str
) -> None:
    name, _ = make(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        build_model(ModelConfig(weights=str(tmp_path / name)), 3)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700


def bomb() -> dict[str, Any]:
    """Dicts that hold the same dicts over and over: few bytes, and more ways through than there is time."""
    inner: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(5):
        inner = {str(number): inner for number in range(50)}
    return inner


def index(shard: object) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        (folder / "hub").mkdir()
        content = {"weight_map": {"conv1.weight": shard}}
        (folder / "hub" / "model.safetensors.index.json").write_text(json.dumps(content))
        return "hub", own()

    return make


def beside(text: str) -> Callable[[Path], Made]:
    """Weights with a config.json beside."""

    def make(folder: Path) -> Made:
        (folder / "hub").mkdir()
        save_file(state(), folder / "hub" / "model.safetensors")
        (folder / "hub" / "config.json").write_text(text)
        return "hub", own()

    return make


SPREAD = torch.ones(1).expand(10**6, 10**7)
HOSTILE: dict[str, tuple[Callable[[Path], Made], str]] = {
    "nested tensor": (
        saved(lambda: {**state(), "bn1.weight": torch.nested.nested_tensor([torch.ones(2)])}),
        "lacks bn1.weight",
    ),
    "meta": (
        saved(lambda: {key: {**state(), "bn1.weight": torch.ones(64, device="meta")} for key in "ab"}),
        "holds 2 networks",
    ),
    "spread": (saved(lambda: {key: {**state(), "fc.weight": SPREAD} for key in "ab"}), "holds 2 networks"),
    "spread head": (
        saved(lambda: {**state(), "fc.weight": SPREAD}),
        "its head takes 10000000 to 1000000 features",
    ),
    "bomb": (saved(bomb), "holds the layers of none of"),
    "itself": (saved(lambda: itself()), "'a' is dict, expected a tensor"),
    "shard elsewhere": (
        index("../w.safetensors"),
        "index.json: lists no files of this folder, expected the hub's",
    ),
    "shard of no name": (index(3), "checkpoint .*hub/3: is|3: no such file"),
    "shard that is missing": (index("a.safetensors"), "hub/a.safetensors: no such file"),
    "config is no JSON": (beside("{"), "config.json: is no JSON, expected the file that the hub has"),
    "config is a list": (beside("[]"), "config.json: got list, expected an object of JSON"),
    "config nests deeply": (beside("[" * 100_000), "config.json: is no JSON"),
    "config names no text": (
        beside('{"model_type": "resnet\\u001b", "architectures": 3}'),
        "model_type is .*resnet",
    ),
}


def itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["a"] = content
    return content


@pytest.mark.filterwarnings("ignore")  # torch's, of nested tensors
@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_content_is_one_line(tmp_path: Path, make: Callable[[Path], Made], message: str) -> None:
    test_checkpoint_is_refused_with_the_line_that_helps(tmp_path, make, message)


@pytest.mark.parametrize("row", ["a whole model", "a model in a dict", "an object beside", "an old file"])
def test_the_line_that_frees_weights_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    make, _ = REFUSED[row]
    name, _ = make(tmp_path)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path / name)
    line = re.search(r'python -c "(.*)"', str(caught.value))
    assert line is not None
    monkeypatch.chdir(tmp_path)
    exec(line[1], {})
    assert torch.equal(open_checkpoint(Path("weights.pt")).weights["fc.weight"], own().fc.weight)


def test_bgr_network_takes_rgb(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pt")
    images = torch.randn(2, 3, 40, 40)
    found = build_model(ModelConfig(weights=str(tmp_path / "w.pt")), 3, bgr=True)
    assert torch.allclose(logits_of(found, images), logits_of(own(), images.flip(1)), atol=1e-5)


@pytest.mark.parametrize("row", ["no head", "batch norm in the head", "a layer between", "other features"])
def test_new_head_takes_the_place_of_one_that_cannot_be_taken(tmp_path: Path, row: str) -> None:
    make, _ = REFUSED[row]
    name, _ = make(tmp_path)
    checkpoint = open_checkpoint(tmp_path / name)
    assert checkpoint.num_classes is None and checkpoint.head_fault in checkpoint.description
    network = build_model(ModelConfig(weights=str(tmp_path / name), replace_head=True), 5)
    assert torch.equal(network.get_parameter("conv1.weight"), own().conv1.weight)
    assert logits_of(network, torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("averaged", "message"), [(True, "holds no averaged weights"), (False, "holds no weights as")]
)
def test_kind_that_is_not_there_is_one_line(tmp_path: Path, averaged: bool, message: str) -> None:
    torch.save(state() if averaged else averaging().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=f"{message}.*; take averaged out of .model."):
        open_checkpoint(tmp_path / "w.pt", averaged)
