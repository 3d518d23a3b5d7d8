"""An explanation in words: where a loss comes from, what the blocks know, and what was moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from temper.builder.names import short_names
from temper.report import text
from temper.report.explained import (
    Blame,
    Block,
    CurveOfFeatures,
    Explanation,
    LayerBlame,
    Mended,
    NetworkView,
    Similarity,
)
from temper.report.measured import Estimate, Share

NUM_NAMED = 3
"""Layers that a sentence names."""
_TOLD = {"greedy": "chosen by greedy", "random": "at random"}
"""Ways to choose features: that of `select` when it is not told another, and what it has to beat."""
_ALIKE = 0.99
"""Blocks of a higher similarity are not told apart in words."""


def blamed(blame: Blame) -> list[str]:
    """What a variant lost, which layers explain it, and what putting them back gives."""
    short = short_names([layer.name for layer in blame.layers])
    change = blame.accuracy_change
    words = text.points(change.difference, change.low, change.high)
    lost = (
        f"{blame.variant} against itself before quantisation: accuracy {words}, the same answer on "
        f"{_share(blame.agreement)} of {blame.num_images} test images. The loss, the logits' mean squared "
        f"difference, is {text.percent(blame.loss)} of their variance."
    )
    sentences = [lost, _explained(blame, short)]
    sentences += [
        f"{short[layer.name]}: {_sentence('; '.join(layer.findings))}"
        for layer in _telling(blame)
        if layer.findings
    ]
    if blame.suggestion is not None:
        sentences.append(_mended(blame.suggestion, blame.variant, short))
        if change.high >= 0:
            sentences.append("No loss of accuracy is certain on the test images, so this may buy nothing.")
    if blame.suggestion_note:
        sentences.append(_sentence(blame.suggestion_note))
    return sentences


def where(blame: Blame) -> str:
    """What was run, and that it is not the engine where it is not."""
    ran = f"Run in {blame.precision} on {blame.num_images} test images, in {blame.runs_in}."
    if not blame.in_engine:
        ran += (
            " The engine's inner tensors cannot be read: this is the graph's exact arithmetic, not the engine's."
        )
    ran += (
        f" Layers were ranked on {blame.num_search} training images; reading the inner tensors of "
        f"{blame.num_activations} of them moved the logits by {text.percent(blame.tap_change)} of their spread."
    )
    return f"{ran} {_sentence(blame.note)}".rstrip()


def worst(blame: Blame) -> list[LayerBlame]:
    """The layers, those first that explain most of the loss; those that are not quantised last."""
    return sorted(blame.layers, key=lambda layer: -layer.share.value if layer.share else float("inf"))


def _telling(blame: Blame) -> list[LayerBlame]:
    """The worst layers among those that explain more than nothing for certain."""
    return [layer for layer in worst(blame) if layer.share and layer.share.low > 0][:NUM_NAMED]


def _explained(blame: Blame, short: dict[str, str]) -> str:
    told = [(short[layer.name], layer.share) for layer in _telling(blame) if layer.share]
    if not told:
        return "No layer takes part of the loss away for certain when it alone is put back to float."
    (name, share), *others = told
    more = "".join(f", {other} {part(found)}" for other, found in others)
    least = told[-1][1].value
    if any(layer.share and layer.share.low <= 0 and layer.share.value > least for layer in blame.layers):
        more += "; layers whose interval reaches 0 are not named"
    return (
        f"Put back to float alone, {name} takes {text.percent(share.value)} of the loss away (95 % interval "
        f"{part_bounds(share)}){more}."
    )


def _mended(mended: Mended, variant: str, short: dict[str, str]) -> str:
    names = [short.get(name, name) for name in mended.keep_high]
    if len(names) > NUM_NAMED:
        names = [*names[:NUM_NAMED], f"{len(names) - NUM_NAMED} more"]
    named = " and ".join(words for words in (", ".join(names[:-1]), *names[-1:]) if words)
    change = mended.accuracy_change
    said = (
        f"With {named} kept in float, {text.percent(mended.recovered.value)} of the loss goes "
        f"({part_bounds(mended.recovered)}): accuracy "
        f"{text.points(change.difference, change.low, change.high)} over {variant}, the answer from before on "
        f"{_share(mended.agreement)} of {mended.agreement.num_images} images"
    )
    if not mended.tried:
        return f"{said}, as the quantised graph computes with them put back; it was not built anew."
    said += "; quantised anew and measured on all test images"
    if mended.latency_ratio is not None:
        ratio = mended.latency_ratio
        bounds = f"{text.times(ratio.low)} to {text.times(ratio.high)}"
        said += f", at {text.times(ratio.value)} the latency of {variant} ({bounds})"
    return said + (f" and {text.size(mended.size_bytes)}." if mended.size_bytes is not None else ".")


def part(found: Estimate) -> str:
    """A share of the loss with its interval."""
    return f"{text.percent(found.value)} ({part_bounds(found)})"


def part_bounds(found: Estimate) -> str:
    """The interval alone."""
    return f"{text.plain(100 * found.low, 1)} to {text.plain(100 * found.high, 1)} %"


def knows(explanation: Explanation) -> list[str]:
    """What a linear probe reads at the first and the last block; also of the network before finetuning."""
    told = [view for view in explanation.networks if view.kind in ("original", "initial")]
    return [sentence for view in told if (sentence := _known(view))]


def _known(view: NetworkView) -> str:
    probes = [(block.name, block.probe) for block in view.blocks if block.probe is not None]
    if len(probes) < 2:
        return ""
    (first, low), (last, high) = probes[0], probes[-1]
    outside = [index for index, (_, probe) in enumerate(probes) if not high.low <= probe.value <= high.high]
    enough = probes[outside[-1] + 1 if outside else 0][0]  # from there on none is
    rank = view.blocks[-1].effective_rank
    from_there = f", within that interval from {enough} on" if enough != last else ""
    return (
        f"{view.name}: a linear classifier reads {_share(low)} from {first} and {_share(high)} from "
        f"{last}{from_there} (95 % intervals); the last features' effective rank is {rank.value:.1f} of "
        f"{view.blocks[-1].num_features}."
    )


def kept(explanation: Explanation) -> list[str]:
    """What a head on a quarter of the features costs, chosen as `select` does it and at random."""
    curves = explanation.selection.curves if explanation.selection else ()
    found = [sentence for curve in curves if curve.method in _TOLD and (sentence := _at_quarter(curve))]
    return (
        [f"A head that is trained anew on some of the features, against one on all: {'; '.join(found)}."]
        if found
        else []
    )


def _at_quarter(curve: CurveOfFeatures) -> str:
    total = curve.num_features[-1]
    place = min(range(len(curve.num_features)), key=lambda each: abs(curve.num_features[each] - total / 4))
    change = curve.change[place]
    words = text.points(change.difference, change.low, change.high)
    return (
        f"{curve.num_features[place]} of {total}, {_TOLD[curve.method]}, {words}"
        if place + 1 < len(curve.num_features)
        else ""
    )


def moved(explanation: Explanation) -> list[str]:
    """For every pair of two networks but the snapshots: where they differ most, and least."""
    names = {view.name for view in views(explanation)}
    pairs = [pair for pair in explanation.similarities if {pair.first, pair.second} <= names]
    return [sentence for pair in pairs if (sentence := _moved(pair))]


def _moved(pair: Similarity) -> str:
    known = [(name, value) for name, value in diagonal(pair) if value is not None]
    if pair.first == pair.second or len(known) < 2:
        return ""
    name, least = min(known, key=lambda one: one[1].value)
    other, most = max(known, key=lambda one: one[1].value)
    if min(value.low for _, value in known) > _ALIKE:
        return f"{pair.first} and {pair.second}: alike in every block, least in {name}, CKA {cka(least)}."
    return (
        f"{pair.first} and {pair.second}: least alike in {name}, CKA {cka(least)}; most in {other}, {cka(most)}."
    )


def diagonal(pair: Similarity) -> Iterator[tuple[str, Estimate | None]]:
    """Each block of the first network against the second's of the same name, where it has one."""
    for name, row in zip(pair.rows, pair.values, strict=True):
        if name in pair.columns:
            yield name, row[pair.columns.index(name)]


def cka(found: Estimate) -> str:
    """A similarity with its interval."""
    return f"{text.plain(found.value)} ({text.plain(found.low)} to {text.plain(found.high)})"


def views(explanation: Explanation) -> list[NetworkView]:
    """The networks without the snapshots."""
    return [view for view in explanation.networks if view.kind != "snapshot"]


def block_names(networks: Sequence[NetworkView]) -> list[str]:
    """The blocks of all of them, from the stem to the last."""
    return list(dict.fromkeys(block.name for view in networks for block in view.blocks))


def block_of(view: NetworkView, name: str) -> Block | None:
    """The network's block of this name, if it has one."""
    return next((block for block in view.blocks if block.name == name), None)


def _share(share: Share) -> str:
    return f"{text.percent(share.value)} ({text.interval(share.low, share.high)})"


def _sentence(words: str) -> str:
    """Words as a sentence, whether or not they are one already."""
    return words if not words or words.endswith((".", "!", "?")) else f"{words}."
