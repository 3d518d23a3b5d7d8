"""Feature selection: the head reads a subset of the last features, and the last stage computes no others.

All blocks of a stage add to the same channels, so those that the head no longer reads go from every block: the
outputs of its last convolution and of the shortcut's. A later block's first convolution then misses inputs. What
it misses is predicted from those it has, by a linear regression over positions, and folded into its weights (after
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, who fit the outputs). The
constant part of it comes back as batch normalisation is measured anew, and last the head is fitted to the features
as they are.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from temper.builder.compress.methods import METHODS, Method
from temper.builder.compress.step import NetworkStep, StepContext
from temper.builder.errors import CompressError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from temper.builder.compress.calibrate import ServedBatches
    from temper.builder.compress.importance import HeadData

_STAGE = "layer4"
_HEAD = "fc"
# Positions of thousands of images leave little to chance: enough for channels that are always 0.
_RIDGE = 1e-5


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """How many of the features that the head reads are kept, and how they are chosen."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    features: float
    """Share of the features that is kept, more than 0 to 1."""
    method: Method = "greedy"
    """`greedy` and `l1` choose features that stand for the others together: by forward selection, and in the order
    in which they enter a group lasso. `shapley`, `permutation`, `taylor` and `activation` take the most important
    ones, each on its own. `random` is what they have to beat."""
    multiple: int = 32
    """The number kept is a multiple of this: int8 tensor-core kernels pad their channels to 32."""
    num_images: int = 4096
    """Training images, as they are served, that features are chosen and the head is fitted on; at least 2."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if not 0 < self.features <= 1:
            raise ValueError(f"features: got {self.features}, expected a share of more than 0 and at most 1")
        if self.method not in METHODS:
            raise ValueError(f"method: got {self.method!r}, expected one of {', '.join(METHODS)}")
        for name, low in (("multiple", 1), ("num_images", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected {low} or more")

    def num_kept(self, num_features: int) -> int:
        """Returns how many of some features are kept: the nearest multiple, at least one of them."""
        wanted = round(self.features * num_features / self.multiple) * self.multiple
        return num_features if self.features == 1 else min(max(wanted, self.multiple), num_features)


class Select(NetworkStep[SelectConfig]):
    """Keeps a subset of the features that the head reads."""

    name = "select"
    about = "Keep a subset of the features that the head reads, and compute no others."
    config = SelectConfig
    place = 15

    def libraries(self, config: SelectConfig) -> tuple[str, ...]:
        """Linear algebra decides, for `l1` the path of scikit-learn, and SciPy says how sure the choice is."""
        return ("torch", "scipy", *(["scikit-learn"] if config.method == "l1" else []))

    def run(
        self, network: nn.Module, config: SelectConfig, context: StepContext
    ) -> tuple[nn.Module, dict[str, Any]]:
        """See `run_select`."""
        return run_select(network, config, context)


STEP = Select()


def run_select(network: nn.Module, config: SelectConfig, context: StepContext) -> tuple[nn.Module, dict[str, Any]]:
    """Cuts the head and the last stage to a subset of the features, and fits the head to them.

    Args:
        network: One of torchvision's ResNets: float32 [N, 3, H, W], normalised. It stays as it is.
        config: The share and the method.
        context: The step's data and surroundings.

    Returns:
        The network, on the CPU in evaluation mode, and: method, num_features_before, num_features, kept (which, in
        order), num_images, stability (value, low, high; null without a choice), explained (per convolution the
        share of the variance of its missing inputs that those left predict), what `change_figures` counts,
        seconds, note; `warning` where images are too few.

    Raises:
        CompressError: A layer of the last stage is no plain convolution, the head has two layers, or there is one
            training image.
    """
    from torch import nn

    from temper.builder.compress.calibrate import change_figures
    from temper.builder.network.resnet import head_of

    started = time.monotonic()
    if not isinstance(head := head_of(network), nn.Linear):
        raise CompressError(
            "select: the head has two layers, expected a linear one to fit anew; take select out, or give the "
            "network a new head with model.replace_head = true"
        )
    num_features = head.in_features
    num_kept = config.num_kept(num_features)
    cut: dict[str, Any] = {"kept": list(range(num_features)), "stability": None, "explained": {}}
    if num_kept == num_features:
        changed = copy.deepcopy(network).cpu().eval()
        note = f"features = {config.features:g} leaves all {num_features} as they are"
    else:
        changed, cut = _cut(network, config, context, num_kept)
        note = f"{num_kept} of {num_features} features, the head fitted anew"
    figures = change_figures(network, changed, context)
    return changed, {
        "method": config.method,
        "num_features_before": num_features,
        "num_features": num_kept,
        **cut,
        **figures,
        "seconds": round(time.monotonic() - started, 2),
        "note": f"{note}, {100 * figures['flops'] / figures['flops_before']:.0f} % of the FLOPs",
    }


def _cut(
    network: nn.Module, config: SelectConfig, context: StepContext, num_kept: int
) -> tuple[nn.Module, dict[str, Any]]:
    from temper.builder.compress.calibrate import ServedBatches, recalibrate
    from temper.builder.compress.head import fit_head
    from temper.builder.compress.subsets import describe_limits, order_features, stability_of
    from temper.builder.network.train import pick_device

    network = copy.deepcopy(network).to(pick_device(context.train_config)).eval()
    _check(network)
    batches = ServedBatches(context, config.num_images)
    seen = _look(network, batches)
    context.progress(1, 4)
    order = order_features(seen.head, config.method, first=num_kept, seed=context.seed)
    kept = order[:num_kept].sort().values
    stability = stability_of(seen.head, config.method, num_kept, seed=context.seed)
    context.progress(2, 4)
    explained = _narrow(network, kept, seen.inputs)
    _set_head(network, seen.head.weight[:, kept], seen.head.bias)  # until the features are known
    recalibrate(network, batches, inside=_STAGE)
    context.progress(3, 4)
    features = _features(network, batches)
    _set_head(network, *fit_head(features, seen.head.labels, seen.head.logits))
    context.progress(4, 4)
    limits = describe_limits(len(batches.labels), seen.head.num_features)
    return network.cpu().eval(), {
        "kept": kept.tolist(),
        "num_images": len(batches.labels),
        "stability": None if stability is None else stability._asdict(),
        "explained": explained,
        **({"warning": limits} if limits else {}),
    }


@dataclass(frozen=True)
class _Seen:
    """What training images leave in the network before the cut."""

    head: HeadData
    """What the head reads, and the head."""
    inputs: dict[str, torch.Tensor]
    """Covariance of the input channels, by the convolutions that will miss some."""


def _blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"{_STAGE}.{name}", block) for name, block in network.get_submodule(_STAGE).named_children()]


def _last_conv(block: nn.Module) -> str:
    return "conv3" if hasattr(block, "conv3") else "conv2"


def _shortcut(block: nn.Module) -> list[str]:
    """The names of the convolution and the normalisation that end the shortcut, if it projects."""
    downsample = getattr(block, "downsample", None)
    return [] if downsample is None else [f"downsample.{name}" for name, _ in downsample.named_children()][-2:]


def _check(network: nn.Module) -> None:
    """Refuses a stage whose channels are not those of plain convolutions."""
    from torch import nn

    for name, block in _blocks(network):
        inner = ["conv1", _last_conv(block), *_shortcut(block)[:1]]
        for layer in inner:
            if type(found := block.get_submodule(layer)) is not nn.Conv2d:
                raise CompressError(
                    f"select: {name}.{layer} is a {type(found).__name__}, expected a convolution; let select come "
                    "before what replaces it"
                )


def _look(network: nn.Module, batches: ServedBatches) -> _Seen:
    import torch

    from temper.builder.compress.importance import HeadData
    from temper.builder.compress.moments import Sums
    from temper.builder.network.resnet import head_of

    sums = {f"{name}.conv1": Sums() for name, _ in _blocks(network)[1:]}
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs, each=each: each.add(inputs[0]))
        for name, each in sums.items()
    ]
    features = _features(network, batches)
    for hook in hooks:
        hook.remove()
    head = head_of(network)
    assert isinstance(head, torch.nn.Linear), "torchvision's"
    weight, bias = head.weight.detach().cpu(), head.bias.detach().cpu()
    data = HeadData(features, torch.from_numpy(batches.labels), weight, bias)
    return _Seen(data, {name: each.covariance() for name, each in sums.items()})


def _features(network: nn.Module, batches: ServedBatches) -> torch.Tensor:
    """Returns what the head reads, float32 [N, D], on the CPU."""
    import torch

    from temper.builder.network.resnet import head_of

    read: list[torch.Tensor] = []
    hook = head_of(network).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].cpu()))
    device = next(network.parameters()).device
    with torch.no_grad():
        for batch in batches:
            network(batch.to(device))
    hook.remove()
    return torch.cat(read)


def _narrow(network: nn.Module, kept: torch.Tensor, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Cuts the last stage to some channels; returns the share of what is missing that is predicted, per layer."""
    explained = {}
    for number, (name, block) in enumerate(_blocks(network)):
        last = _last_conv(block)
        _keep_outputs(block, last, f"bn{last[-1]}", kept)
        if shortcut := _shortcut(block):
            _keep_outputs(block, shortcut[0], shortcut[1], kept)
        if number > 0:
            explained[f"{name}.conv1"] = _fold_inputs(block, "conv1", kept, inputs[f"{name}.conv1"])
    return explained


def _keep_outputs(block: nn.Module, conv_name: str, norm_name: str, kept: torch.Tensor) -> None:
    from torch import nn

    conv, norm = block.get_submodule(conv_name), block.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d), "checked before"
    rows = kept.to(conv.weight.device)
    conv.weight = nn.Parameter(conv.weight.detach()[rows].clone())
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach()[rows].clone())
    conv.out_channels = norm.num_features = len(kept)
    norm.weight = nn.Parameter(norm.weight.detach()[rows].clone())
    norm.bias = nn.Parameter(norm.bias.detach()[rows].clone())
    for name in ("running_mean", "running_var"):
        norm.register_buffer(name, norm.get_buffer(name)[rows].clone())


def _fold_inputs(block: nn.Module, conv_name: str, kept: torch.Tensor, covariance: torch.Tensor) -> float:
    """Lets a convolution do with some inputs; returns the share of the others' variance that these predict."""
    import torch
    from torch import nn

    from temper.builder.compress.head import ridge_from

    conv = block.get_submodule(conv_name)
    assert isinstance(conv, nn.Conv2d), "checked before"
    missing = torch.ones(len(covariance), dtype=torch.bool)
    missing[kept] = False
    cross = covariance[kept][:, missing]
    predict = ridge_from(covariance[kept][:, kept], cross, _RIDGE)  # [kept, missing]
    weight = conv.weight.detach().cpu().double()
    folded = weight[:, kept] + torch.einsum("oihw,ki->okhw", weight[:, missing], predict)
    conv.weight = nn.Parameter(folded.float().to(conv.weight.device))
    conv.in_channels = len(kept)
    total = covariance.diagonal()[missing].sum()
    return float((predict * cross).sum() / total) if total > 0 else 1.0


def _set_head(network: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    import torch
    from torch import nn

    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    network.set_submodule(_HEAD, head.to(next(network.parameters()).device))
