"""golden.json: a few inputs with every member's score, by which a loaded ensemble proves itself.

    [GoldenItem]  --write_golden-->  golden.json  --read_golden-->  [GoldenItem]

Knows nothing of models.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from quorum_model.bundle.read import GOLDEN_NAME, Bundle
from quorum_model.errors import BundleCorrupt, SelfTestFailed


class GoldenItem(BaseModel):
    """token_ids: with special ones, as the engine gets them. scores: K raw fp32 scores, before calibration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    token_ids: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    scores: list[float] = Field(min_length=1)


_ITEMS = TypeAdapter(Annotated[list[GoldenItem], Field(min_length=1)])


def write_golden(folder: Path, items: Sequence[GoldenItem]) -> None:
    """Write golden.json into a bundle that is being made."""
    lines = ",\n ".join(json.dumps(item.model_dump(), allow_nan=False) for item in items)
    (folder / GOLDEN_NAME).write_text(f"[{lines}]\n", encoding="utf-8")


def read_golden(bundle: Bundle) -> list[GoldenItem]:
    """The golden inputs of a bundle; at least one.

    Raises:
        BundleCorrupt: not such a file, or not one score a member.
    """
    try:
        items = _ITEMS.validate_json((bundle.path / GOLDEN_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleCorrupt(f"{GOLDEN_NAME} is not a list of token ids and scores") from error
    num_members = len(bundle.manifest.members)
    if any(len(item.scores) != num_members for item in items):
        raise BundleCorrupt(f"{GOLDEN_NAME} does not hold one score for each of {num_members} members")
    return items


def check_apart(expected: NDArray[Any], actual: NDArray[Any], names: Sequence[str]) -> None:
    """Members that golden scores tell apart must not score exactly alike.

    In low precision the self-test's tolerance is wider than many an adapter's effect: an ensemble whose members have
    become one would pass, and have no uncertainty.

    Args:
        expected: golden scores (K, B).
        actual: scores of the same inputs (K, B).
        names: of the K members.

    Raises:
        SelfTestFailed: naming two that score alike.
    """
    for first, second in itertools.combinations(range(len(names)), 2):
        if np.array_equal(actual[first], actual[second]) and not np.array_equal(expected[first], expected[second]):
            raise SelfTestFailed(f"members {names[first]} and {names[second]} score alike, and should not")
