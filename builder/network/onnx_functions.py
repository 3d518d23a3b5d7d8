"""Counts what the functions of an ONNX file come to when all of them are put in line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto

_Key = tuple[str, ...]
_MAX_NESTING = 100


def count_inlined(model: ModelProto) -> tuple[float, float]:
    """Returns the operators and the bytes of the largest function or graph with all that it calls.

    What is in branches is in it too. Both are infinite where functions call each other without end.
    """
    bodies = {("",): model.graph.node} | {_function(one, one.name): one.node for one in model.functions}
    inner = {key: list(_with_branches(body)) for key, body in bodies.items()}
    calls = {key: Counter(_function(node, node.op_type) for node in nodes) for key, nodes in inner.items()}
    # An attribute of a call, or what stands for it, is copied to wherever the function refers to it.
    given = [one for function in model.functions for one in function.attribute_proto]
    for node in chain.from_iterable(inner.values()):
        given += node.attribute if _function(node, node.op_type) in bodies else ()
    largest = max((one.ByteSize() for one in given), default=0)
    num_bytes = {
        key: sum(node.ByteSize() for node in body)
        + largest * sum(bool(one.ref_attr_name) for node in inner[key] for one in node.attribute)
        for key, body in bodies.items()
    }
    return _inlined({key: len(nodes) for key, nodes in inner.items()}, calls), _inlined(num_bytes, calls)


def _inlined(own: Mapping[_Key, int], calls: Mapping[_Key, Counter[_Key]]) -> float:
    sizes = dict(own)
    for _ in range(_MAX_NESTING):
        before = sizes
        sizes = {
            key: size + sum(times * before.get(name, 0) for name, times in calls[key].items())
            for key, size in own.items()
        }
        if sizes == before:
            return max(sizes.values())
    return math.inf


def _function(of: NodeProto | FunctionProto, name: str) -> tuple[str, ...]:
    """Returns what a function is found by."""
    return ("" if of.domain == "ai.onnx" else of.domain, name, of.overload)


def _with_branches(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The operators, and those within them."""
    for node in nodes:
        yield node
        for one in node.attribute:
            for graph in (one.g, *one.graphs):
                yield from _with_branches(graph.node)
