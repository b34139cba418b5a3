"""What is trained on and what is scored: fixed samples of the data sets, the same at every call.

    QUORUM_DATA  --training_pairs-->  JSON lines of pairs, some labels turned round
                 --read_texts-->      Texts: distinct (prompt, response), and the sets that point into them

Prompts to choose by (`select`) are train prompts of alpaca_eval that no pair is trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plan import TRAIN_PAIRS

SELECT_PROMPTS = 60
MOST_PAIRS, MOST_STYLE_ROWS, SHUFFLED = 300, 100, 120
OOD = ("faireval_human", "finegrained_qa", "hhh_alignment", "llmbar", "llmeval2_human", "mtbench_human", "pandalm")
REFERENCE = "gpt4_1106_preview"


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of one prompt: columns of the score arrays, gold, characters, and who wrote each."""

    prompt: str
    columns: tuple[int, ...]
    gold: tuple[float, ...]
    chars: tuple[int, ...]
    generators: tuple[str, ...]


@dataclass(slots=True)
class Texts:
    """items: distinct (prompt, response). pairs: by set, (prompt, column of chosen, of rejected). others: by set."""

    items: list[tuple[Any, str]] = field(default_factory=list)
    pools: dict[str, list[Pool]] = field(default_factory=dict)
    pairs: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    others: dict[str, list[int]] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def column(self, prompt: Any, response: str) -> int:
        """Where a text's scores are."""
        key = json.dumps([prompt, response])
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append((prompt, response))
        return self._places[key]

    def sha256(self) -> str:
        """Of all texts in their order: scores of other texts are refused."""
        return hashlib.sha256("\n".join(self._places).encode()).hexdigest()


def read_texts() -> Texts:
    """Everything that is scored."""
    texts = Texts()
    texts.pools["select"] = _pools(texts, [row for row in _rows("alpaca_eval/train_bon") if _is_for_selection(row)])
    texts.pools["dev"] = _pools(texts, _rows("alpaca_eval/dev_bon"))
    selection = [row for row in _rows("alpaca_eval/train_pairs") if _is_for_selection(row)]
    texts.pairs["select"] = _pairs(texts, _sample(selection, 2 * MOST_PAIRS))
    for name in ("dev_pairs", "dev_pairs_lenbal"):
        texts.pairs[name] = _pairs(texts, _rows(f"alpaca_eval/{name}"))
    for name in OOD:
        texts.pairs[name] = _pairs(texts, _sample(_rows(f"ood/{name}"), MOST_PAIRS))
    texts.pairs["hh_harmless"] = _pairs(texts, _rows("hh_harmless/dev_pairs"))
    for level, pairs in _style_pairs(texts, _sample(_rows("ood/rm_bench"), MOST_STYLE_ROWS)).items():
        texts.pairs[f"rm_bench_{level}"] = pairs
    for row in _rows("alpaca_eval/dev_adversarial"):
        texts.others.setdefault(row["generator"], []).append(texts.column(row["prompt"], row["text"]))
    texts.others["shuffled"] = _shuffled(texts)
    return texts


def training_pairs(noise: int, target: Path) -> Path:
    """The pairs of one noise level, written once."""
    if not target.exists():
        rows = _sample([row for row in _rows("alpaca_eval/train_pairs") if not _is_for_selection(row)], TRAIN_PAIRS)
        turned = set(random.Random(1).sample(range(len(rows)), len(rows) * noise // 100))  # noqa: S311 - no secret
        lines = []
        for index, row in enumerate(rows):
            sides = [row["chosen"], row["rejected"]]
            if index in turned:
                sides.reverse()
            lines.append(json.dumps({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]}) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(lines), encoding="utf-8")
    return target


def _rows(name: str) -> list[dict[str, Any]]:
    path = Path(os.environ["QUORUM_DATA"]) / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


def _sample(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return random.Random(0).sample(list(rows), min(most, len(rows)))  # noqa: S311 - a sample, not a secret


_selection_ids: set[str] = set()


def _is_for_selection(row: dict[str, Any]) -> bool:
    """Whether its prompt is one of those that are chosen by and never trained on."""
    if not _selection_ids:
        ids = sorted({pool["prompt_id"] for pool in _rows("alpaca_eval/train_bon")})
        _selection_ids.update(random.Random(0).sample(ids, SELECT_PROMPTS))  # noqa: S311 - no secret
    return row["prompt_id"] in _selection_ids


def _is_visible(text: str) -> bool:
    """Whether it has more than white space and format characters: a text without tokens has no score."""
    return any(not char.isspace() and unicodedata.category(char) != "Cf" for char in text)


def _pools(texts: Texts, rows: Iterable[dict[str, Any]]) -> list[Pool]:
    pools = []
    for row in rows:
        kept = [one for one in row["candidates"] if _is_visible(one["text"])]
        pools.append(
            Pool(
                row["prompt_id"],
                tuple(texts.column(row["prompt"], one["text"]) for one in kept),
                tuple(float(one["gold"]) for one in kept),
                tuple(len(one["text"]) for one in kept),
                tuple(one["generator"] for one in kept),
            )
        )
    return pools


def _pairs(texts: Texts, rows: Iterable[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [
        (row["prompt_id"], texts.column(row["prompt"], row["chosen"]), texts.column(row["prompt"], row["rejected"]))
        for row in rows
        if _is_visible(row["chosen"]) and _is_visible(row["rejected"])
    ]


def _style_pairs(texts: Texts, rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[str, int, int]]]:
    """RM-Bench: easy where the chosen style is richer than the rejected one, hard where it is plainer."""
    levels: dict[str, list[tuple[str, int, int]]] = {"easy": [], "normal": [], "hard": []}
    for row in rows:
        for i, chosen in enumerate(row["chosen"]):
            for j, rejected in enumerate(row["rejected"]):
                level = "normal" if i == j else "easy" if i > j else "hard"
                pair = texts.column(row["prompt"], chosen), texts.column(row["prompt"], rejected)
                levels[level].append((row["prompt_id"], *pair))
    return levels


def _shuffled(texts: Texts) -> list[int]:
    """The reference's answers of dev prompts with their words in random order."""
    columns = []
    for pool in texts.pools["dev"][:SHUFFLED]:
        if REFERENCE in pool.generators:
            prompt, response = texts.items[pool.columns[pool.generators.index(REFERENCE)]]
            words = response.split()
            random.Random(pool.prompt).shuffle(words)  # noqa: S311 - no secret
            columns.append(texts.column(prompt, " ".join(words)))
    return columns
