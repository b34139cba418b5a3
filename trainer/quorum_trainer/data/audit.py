"""What is wrong with data as a whole: pairs told twice, pairs told both ways, prompts on both sides of the split.

    splits of all sources  --audit_splits-->  splits without leaks, Audit

The split keeps prompts of one source apart; only here are sources seen together. Pure, one pass, and without texts: a
pair is remembered as a few bytes of digest. Knows no files and no models.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quorum_trainer.data.pairs import PreferencePair

_MOST_LINES = 3


@dataclass(frozen=True, slots=True)
class SourceSplit:
    """The two sides of one source."""

    name: str
    train: list[PreferencePair]
    held_out: list[PreferencePair]


@dataclass(frozen=True, slots=True)
class Finding:
    """Pairs with one fault. by_source: how many; lines: where the first few of them were read, by source."""

    by_source: dict[str, int]
    lines: dict[str, tuple[int, ...]]

    @property
    def count(self) -> int:
        """Over all sources."""
        return sum(self.by_source.values())

    def __str__(self) -> str:
        parts = []
        for name, count in self.by_source.items():
            lines = self.lines.get(name, ())
            shown = ", ".join(str(line) for line in lines) + (", …" if count > len(lines) else "")
            parts.append(
                f"{name} {count} ({'line' if count == 1 else 'lines'} {shown})" if lines else f"{name} {count}"
            )
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, each pair counted under its own source.

    train, held_out: pairs a source that remain.
    duplicates: training pairs whose prompt and responses an earlier training pair has.
    contradictions: training pairs whose prompt an earlier one has with the responses swapped.
    identical: training pairs whose two responses are the same text, though one is said to be better.
    leaks: training pairs whose prompt is held out, up to spelling; dropped, since they would flatter the held-out
    figures. leaked_held_out: the held-out pairs of these prompts.
    """

    train: dict[str, int]
    held_out: dict[str, int]
    duplicates: Finding
    contradictions: Finding
    identical: Finding
    leaks: Finding
    leaked_held_out: Finding

    def summary_lines(self) -> list[str]:
        """One line a fault that was found, for a person."""
        faults = {
            "training pairs dropped, because their prompts are held out": self.leaks,
            "training pairs told again": self.duplicates,
            "training pairs that contradict an earlier one": self.contradictions,
            "training pairs of a response and itself": self.identical,
        }
        lines = [f"data: {found.count} {what}: {found}" for what, found in faults.items() if found.count]
        return lines or ["data: no duplicates, contradictions or leaks"]

    def as_metrics(self) -> dict[str, Any]:
        """Counts alone, for the manifest: under each name a total and a number a source."""
        findings = {
            "duplicates": self.duplicates,
            "contradictions": self.contradictions,
            "identical": self.identical,
            "leaks": self.leaks,
            "leaked_held_out": self.leaked_held_out,
        }
        counts = {name: found.by_source for name, found in findings.items()}
        return {
            name: {"total": sum(by_source.values()), "by_source": dict(by_source)}
            for name, by_source in {"train": self.train, "held_out": self.held_out, **counts}.items()
        }


def audit_splits(splits: Sequence[SourceSplit]) -> tuple[list[SourceSplit], Audit]:
    """Compare all sources; time and memory grow with the number of pairs.

    Returns:
        (the same sources without the leaking training pairs, what was found).
    """
    held_out_prompts = {_digest(pair.loose_prompt_key()) for split in splits for pair in split.held_out}
    leaked, leaks, leaked_held_out = set(), _Tally(), _Tally()
    kept: list[SourceSplit] = []
    for split in splits:
        train = []
        for pair in split.train:
            prompt = _digest(pair.loose_prompt_key())
            if prompt in held_out_prompts:
                leaked.add(prompt)
                leaks.add(split.name, pair)
            else:
                train.append(pair)
        kept.append(SourceSplit(split.name, train, split.held_out))
    for split in splits if leaked else ():
        for pair in split.held_out:
            if _digest(pair.loose_prompt_key()) in leaked:
                leaked_held_out.add(split.name, pair)
    duplicates, contradictions, identical = _compare(kept)
    return kept, Audit(
        train={split.name: len(split.train) for split in kept},
        held_out={split.name: len(split.held_out) for split in kept},
        duplicates=duplicates.finding(),
        contradictions=contradictions.finding(),
        identical=identical.finding(),
        leaks=leaks.finding(),
        leaked_held_out=leaked_held_out.finding(),
    )


@dataclass(slots=True)
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    lines: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, source: str, pair: PreferencePair) -> None:
        self.counts[source] += 1
        lines = self.lines.get(source, ())
        if pair.line is not None and len(lines) < _MOST_LINES:
            self.lines[source] = (*lines, pair.line)

    def finding(self) -> Finding:
        return Finding(dict(self.counts), self.lines)


def _compare(splits: Sequence[SourceSplit]) -> tuple[_Tally, _Tally, _Tally]:
    """Training pairs among themselves: (duplicates, contradictions, identical)."""
    duplicates, contradictions, identical = _Tally(), _Tally(), _Tally()
    seen: set[bytes] = set()
    for split in splits:
        for pair in split.train:
            prompt = pair.prompt_key()
            # Of a tie it means nothing which response is called chosen.
            first, second = sorted((pair.chosen, pair.rejected)) if pair.tie else (pair.chosen, pair.rejected)
            own = _digest(prompt, first, second, pair.tie)
            if own in seen:
                duplicates.add(split.name, pair)
            if not pair.tie and first == second:
                identical.add(split.name, pair)
            elif not pair.tie and _digest(prompt, second, first, False) in seen:
                contradictions.add(split.name, pair)
            seen.add(own)
    return duplicates, contradictions, identical


def _digest(*parts: str | bool) -> bytes:
    # Python's own hash has 64 bits and could take one of some billion pairs for another.
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
