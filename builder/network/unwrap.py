"""The network inside a checkpoint: in which of its dicts, below which prefix, averaged or as trained."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from temper.builder.contract import NUM_CHANNELS
from temper.builder.network.head import HEAD, Head, HeadError, read_head
from temper.builder.network.naming import Naming, find_roots, is_head, plain_name, wrappers_in
from temper.builder.network.weights import fault_of

if TYPE_CHECKING:
    import torch

_MAX_DEPTH = 6
_MAX_NAMED = 4
_AVERAGED = re.compile(r"(?:^|[_.-])(?:model_?)?(?:ema|swa|averaged?|avg|polyak)(?:$|[_.-])")
_COUNTERS = ("n_averaged", "initted", "step")
"""What keeps averages counts beside them."""


class UnclearError(Exception):
    """A checkpoint of which it cannot be told what its network is; the text says why, and what to do."""


@dataclass(frozen=True)
class Found:
    """A ResNet in a checkpoint."""

    where: tuple[str, ...]
    """The keys of the dict that holds it."""
    entries: Mapping[str, torch.Tensor]
    """All tensors of that dict, without wrappers' names."""
    prefix: str
    """What stands before its own names there."""
    naming: Naming
    is_averaged: bool
    wrappers: tuple[str, ...]
    """The names of modules around others that were left out of its names."""

    @property
    def place(self) -> str:
        """Returns where it lies, in words."""
        keys = f"`{'.'.join(self.where)}`" if self.where else ""
        prefix = f"prefix `{reprlib.repr(self.prefix)[1:-1]}`" if self.prefix else ""
        return ", ".join(filter(None, (keys, prefix)))


@dataclass(frozen=True)
class Network:
    """A ResNet's own weights."""

    body: dict[str, torch.Tensor]
    """Under torchvision's names, whichever there are."""
    unknown: list[str]
    """Names below its prefix that no ResNet has."""
    head: Head | None
    head_fault: str
    """Why there is a head that cannot be taken; empty otherwise."""
    left_out: list[str]
    """What lies elsewhere and is not needed."""
    normalization: dict[str, list[float]]
    """What of it is called a mean or a std and has a number for each of three channels."""


def find_networks(content: object) -> list[Found]:
    """Finds all ResNets in what was read from a file."""
    networks = []
    averaged = isinstance(content, dict) and {"averaging_state", "current_model_state"} <= content.keys()
    for where, held in _dicts(content, (), set()):
        entries = _tensors(held)
        wrappers = wrappers_in(name for name in held if isinstance(name, str))
        for prefix, naming in find_roots(entries):
            named = ".".join((*where, prefix.removesuffix(".")))
            is_averaged = (
                bool(_AVERAGED.search(named.lower()))
                or (prefix.endswith("module.") and f"{prefix.removesuffix('module.')}n_averaged" in entries)
                # Source: Lightning's WeightAveraging, which moves the raw weights elsewhere.
                or (averaged and where == ("state_dict",))
            )
            networks.append(Found(where, entries, prefix, naming, is_averaged, wrappers))
    return networks


def tensor_names(content: object) -> list[str]:
    """Returns the names of all tensors in the dicts of a file."""
    return [name for _, held in _dicts(content, (), set()) for name in _tensors(held)]


def _dicts(
    content: object, where: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """All dicts of a file, each once however often it is in it, and the keys that lead to it."""
    if not isinstance(content, dict) or id(content) in seen or len(where) > _MAX_DEPTH:
        return
    seen.add(id(content))
    yield where, content
    for key, value in content.items():
        if isinstance(key, str):
            yield from _dicts(value, (*where, key), seen)


def _tensors(held: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    named = ((plain_name(name), value) for name, value in held.items() if isinstance(name, str))
    return {name: value for name, value in named if name is not None and _has_shape(value)}


def _has_shape(value: object) -> TypeGuard[torch.Tensor]:
    import torch

    return isinstance(value, torch.Tensor) and not value.is_nested


def choose(networks: Sequence[Found], averaged: bool | None) -> Found:
    """Chooses the network that is meant.

    Args:
        networks: At least one.
        averaged: Whether averaged weights are wanted; None takes what there is.

    Raises:
        UnclearError: There are several and nothing says which, or not the wanted one.
    """
    kinds = {kind: _distinct([each for each in networks if each.is_averaged is kind]) for kind in (False, True)}
    if all(kinds.values()) and averaged is None:
        raise UnclearError(
            f"holds weights as trained ({_where(kinds[False][0])}) and averaged ones ({_where(kinds[True][0])}); "
            "write averaged = true in [model] for the averaged, or averaged = false"
        )
    wanted = next(kind for kind in (False, True) if kinds[kind]) if averaged is None else averaged
    left = kinds[wanted]
    if not left:
        here, there = ("averaged weights", "as trained") if wanted else ("weights as trained", "averaged")
        raise UnclearError(f"holds no {here}, only those {there}; take averaged out of [model]")
    if len(left) > 1:
        places = " and ".join(_where(each) for each in left[:_MAX_NAMED])
        raise UnclearError(f"holds {len(left)} networks, in {places}; save the one to be served alone")
    return left[0]


def _where(network: Found) -> str:
    return network.place or "no prefix"


def _distinct(networks: list[Found]) -> list[Found]:
    """Those that are not the same weights under another name."""
    kept: list[Found] = []
    for network in networks:
        if not any(_is_same(network, other) for other in kept):
            kept.append(network)
    return kept


def _is_same(one: Found, other: Found) -> bool:
    import torch

    ours, theirs = (
        {
            name.removeprefix(each.prefix): value
            for name, value in each.entries.items()
            if name.startswith(each.prefix)
        }
        for each in (one, other)
    )
    return ours.keys() == theirs.keys() and all(
        fault_of(ours[name]) is None and fault_of(theirs[name]) is None and torch.equal(ours[name], theirs[name])
        for name in ours
    )


def read_network(found: Found, others: Sequence[Found]) -> Network:
    """Takes a network's own weights out of the dict that holds them.

    Args:
        found: The network.
        others: All networks of the checkpoint.
    """
    body, head, rest = {}, {}, {}
    for name, value in found.entries.items():
        inner = name.removeprefix(found.prefix) if name.startswith(found.prefix) else ""
        own = found.naming.translate(inner)
        if own is not None:
            body[own] = value
        elif is_head(inner):
            head[inner.removeprefix(f"{HEAD}.")] = value
        else:
            rest[name] = value
    rest = _without(rest, [each.prefix for each in others if each.where == found.where and each is not found])
    read, fault = None, ""
    try:
        read = _take_head(head, rest, _num_features(body))
    except HeadError as error:
        fault = str(error)
    # Of a head that cannot be taken no other name is known.
    unknown = [name for name in rest if name.startswith(found.prefix)] if head or not fault else []
    left_out = [name for name in rest if name not in unknown]
    normalization = {
        name: rest[name].flatten().tolist() for name in left_out if _is_normalization(name, rest[name])
    }
    return Network(body, unknown, read, fault, left_out, normalization)


def _is_normalization(name: str, value: torch.Tensor) -> bool:
    return name.endswith(("mean", "std")) and value.numel() == NUM_CHANNELS and fault_of(value) is None


def _take_head(head: dict[str, torch.Tensor], rest: dict[str, torch.Tensor], num_features: int) -> Head | None:
    if not head:
        return _head_beside(rest, num_features)
    read = read_head(head, num_features)
    _refuse_behind(read, rest)
    return read


def _without(entries: dict[str, torch.Tensor], prefixes: list[str]) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in entries.items()
        if name.rpartition(".")[2] not in _COUNTERS
        and not any(prefix and name.startswith(prefix) for prefix in prefixes)
    }


def _num_features(body: Mapping[str, torch.Tensor]) -> int:
    last = [value.shape[0] for name, value in body.items() if name.startswith("layer4.") and value.ndim == 4]
    return max(last, default=0)


def _refuse_behind(head: Head, rest: Mapping[str, torch.Tensor]) -> None:
    """A head of another task, as an embedding, behind which stands the one that answers."""
    for name, value in rest.items():
        if name.endswith(".weight") and value.ndim == 2 and value.shape[1] == head.num_classes:
            raise HeadError(f"its head gives {head.num_classes} values, which {name} may read; give it both as fc")


def _head_beside(rest: dict[str, torch.Tensor], num_features: int) -> Head | None:
    """Takes the only linear layer that fits the features out of what lies beside a body without a head."""
    fits = [name for name, value in rest.items() if value.ndim == 2 and value.shape[1] == num_features]
    matrices = [name for name, value in rest.items() if value.ndim > 1]
    if not fits:
        if matrices:
            raise HeadError(
                f"has no head, and {matrices[0]} of shape {list(rest[matrices[0]].shape)} beside; give the "
                "network its head as fc, or set model.replace_head = true and train a new one"
            )
        return None
    if len(fits) > 1:
        raise HeadError(
            f"has {len(fits)} layers that may be its head ({', '.join(fits[:_MAX_NAMED])}); name one fc"
        )
    module = fits[0].rpartition(".")[0]
    if not module:
        raise HeadError(
            f"has no head but the parameter {fits[0]}, of which it is not known what it does; name it fc"
        )
    top = module.rpartition(".")[0] if module.rpartition(".")[2].isdigit() else module
    entries = {name: value for name, value in rest.items() if name.startswith(f"{top}.")}
    if not top:  # a Sequential's own
        entries = {name: value for name, value in rest.items() if name.partition(".")[0].isdigit()}
    inner = {name.removeprefix(f"{top}."): value for name, value in entries.items()}
    read = read_head(inner, num_features, top)
    left = [name for name in rest if name in matrices or name.endswith("running_mean")]
    left = [name for name in left if name not in entries]
    if left:
        raise HeadError(
            f"has a head in {top} and layers beside it ({', '.join(left[:_MAX_NAMED])}), which may read it"
        )
    for name in entries:
        del rest[name]
    return read
