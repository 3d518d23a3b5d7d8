"""Verdicts for tests: what `temper gate` writes into a version's folder, without a measurement."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from temper.gate.seal import side_of, write_verdict
from temper.report.verdict import Answer, Verdict

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))


def judge(folder: Path, answer: Answer = "SHIP", key: Ed25519PrivateKey | None = KEY) -> None:
    """Writes a verdict on the version that was published there, signed by a key."""
    side = side_of(folder)
    verdict = Verdict(
        answer=answer,
        candidate=side,
        reference=side,
        findings=(),
        confidence=0.95,
        correction="none",
        config={},
        data_sha256=None,
        num_images=0,
        created="2026-11-28T08:00:00Z",
        server="none",
        machine="none",
        versions={},
    )
    write_verdict(folder, verdict, key)
