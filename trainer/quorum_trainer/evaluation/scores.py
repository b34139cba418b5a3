"""Scores of rows by a bundle in this process: each distinct sequence once, with progress.

    rows  --encode-->  token ids  --MemberScorer, calibration-->  ScoredRow: members (K, N)

A score that is not finite stops the evaluation: no figure may rest on an invented one. Knows no metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from quorum_client.errors import QuorumError
from quorum_model.bundle.read import Bundle, read_bundle, resolve_bundle
from quorum_model.calibration import FloatArray, normalize
from quorum_model.errors import ItemRejected
from quorum_model.loading import load_member_scorer
from quorum_model.member_scorer import MemberScorer
from quorum_model.prompts import PromptEncoder, load_prompt_encoder
from quorum_trainer.data import DataError
from quorum_trainer.evaluation.rows import Row

Advance = Callable[[int, int], None]
"""Told (done, total) sequences."""


class ScoreNotFinite(QuorumError):
    """The ensemble gives a text no finite score; the message names file and line."""

    code = "non_finite_score"
    status = 500


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """members: calibrated scores of the row's responses, shape (K, N). num_truncated: of N."""

    row: Row
    members: FloatArray
    num_truncated: int


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """A bundle in memory, ready to score text."""

    bundle: Bundle
    encoder: PromptEncoder
    scorer: MemberScorer

    @classmethod
    def open(cls, source: str, *, device: str, dtype: str) -> OpenBundle:
        """Load it.

        Args:
            source: a folder, a hub id, or "default".
            device: auto, cpu, cuda, cuda:N.
            dtype: auto, float32, bfloat16, float64.

        Raises:
            BundleError: the bundle cannot be used, and why.
        """
        bundle = read_bundle(resolve_bundle(source))
        scorer = load_member_scorer(bundle, device=device, dtype=dtype)
        return cls(bundle, load_prompt_encoder(bundle), scorer)

    def score(self, rows: Sequence[Row], advance: Advance) -> list[ScoredRow]:
        """Score every response of every row.

        Raises:
            DataError: a text that cannot be encoded; names file and line.
            ScoreNotFinite: as it says.
        """
        sequences: dict[tuple[int, ...], int] = {}
        places: list[list[int]] = []
        truncated: list[int] = []
        for row in rows:
            encoded = [self._encode(row, response) for response in row.responses]
            places.append([sequences.setdefault(tuple(ids), len(sequences)) for ids, _ in encoded])
            truncated.append(sum(is_cut for _, is_cut in encoded))
        calibrated = self._score_sequences([list(ids) for ids in sequences], advance)
        scored = [
            ScoredRow(row, calibrated[:, place], cut) for row, place, cut in zip(rows, places, truncated, strict=True)
        ]
        for one in scored:
            if not np.isfinite(one.members).all():
                raise ScoreNotFinite(f"{one.row.file}, line {one.row.line}: a member's score is not a finite number")
        return scored

    def _encode(self, row: Row, response: str) -> tuple[list[int], bool]:
        try:
            encoded = self.encoder.encode_pair(row.prompt, response)
        except ItemRejected as error:
            raise DataError(f"{row.file}, line {row.line}: {error.message}") from error
        return encoded.ids, encoded.truncated

    def _score_sequences(self, sequences: Sequence[list[int]], advance: Advance) -> FloatArray:
        members = self.bundle.manifest.members
        done = 0

        def count(scored: int) -> None:
            nonlocal done
            done += scored
            advance(done, len(sequences))

        raw = self.scorer.score(sequences, count).raw.astype(np.float64)
        calibrations = [member.calibration for member in members]
        return normalize(raw, [c.mean for c in calibrations], [c.scale for c in calibrations])


def score_with_progress(opened: OpenBundle, rows: Sequence[Row], console: Console) -> list[ScoredRow]:
    """`OpenBundle.score` under a progress bar, or a line every tenth where nobody watches."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("scoring", total=None)
        said = 0

        def advance(done: int, total: int) -> None:
            nonlocal said
            progress.update(task, total=total, completed=done)
            if not console.is_terminal and done * 10 // total > said:
                said = done * 10 // total
                console.print(f"scoring: {done:,} of {total:,} texts")

        return opened.score(rows, advance)
