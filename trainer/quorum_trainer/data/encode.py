"""Preference pairs as token ids.

    list[PreferencePair]  --encode_pairs-->  list[EncodedPair]

Knows nothing of files, splits or training.
"""

from __future__ import annotations

from quorum_model.errors import ItemRejected
from quorum_model.prompts import PromptEncoder
from quorum_trainer.data.pairs import DataError, EncodedPair, PreferencePair


def encode_pairs(
    encoder: PromptEncoder, pairs: list[PreferencePair], source: str, phase: int | None = None, weight: float = 1.0
) -> list[EncodedPair]:
    """Token ids of every pair, marked with their source, phase and weight.

    Raises:
        DataError: a pair that cannot be encoded (a dialogue that the chat template refuses); names its line.
    """
    return [_encode_pair(encoder, pair, source, phase, weight) for pair in pairs]


def _encode_pair(
    encoder: PromptEncoder, pair: PreferencePair, source: str, phase: int | None, weight: float
) -> EncodedPair:
    try:
        chosen = encoder.encode_pair(pair.prompt, pair.chosen)
        rejected = encoder.encode_pair(pair.prompt, pair.rejected)
    except ItemRejected as error:
        where = "a pair" if pair.line is None else f"line {pair.line}"
        raise DataError(f"{source}, {where}: {error.message}") from error
    return EncodedPair(
        chosen=chosen.ids,
        rejected=rejected.ids,
        source=source,
        chosen_chars=len(pair.chosen),
        rejected_chars=len(pair.rejected),
        phase=phase,
        margin=pair.margin or 0.0,
        tie=pair.tie,
        weight=weight,
    )
