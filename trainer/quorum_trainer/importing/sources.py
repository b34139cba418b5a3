"""What a user gives to import: a reward model's folder or an adapter's, here or on a hub.

    "folder" | "org/name"  --find_source-->  Source  --check_reward_model-->  its config

Refuses by config alone what is no reward model, before any weights are read. No pickle is opened: whether TRL made a
folder is seen in the raw bytes of its training arguments. Knows no tensors and no tokenizers.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig

from quorum_model.errors import BackboneNotFound, Unsupported

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "README.md", "LICENSE", "NOTICE"]
_HEAD_CLASS = "ForSequenceClassification"
_TRL_CARD = re.compile(r"^\s*-\s*reward-trainer\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """Something to import. given: as the user named it. is_by_trl: whether TRL's RewardTrainer saved it."""

    given: str
    folder: Path
    is_adapter: bool
    is_by_trl: bool


def find_source(given: str) -> Source:
    """Find a model's or an adapter's folder.

    Args:
        given: a folder, or a hub id, which is downloaded.

    Raises:
        BackboneNotFound: there is none.
        Unsupported: it holds neither a model nor an adapter, or its weights are pickled.
    """
    folder = _find_folder(given)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise Unsupported(f"{given}: neither a Transformers model (config.json) nor a PEFT adapter ({ADAPTER_CONFIG})")
    pattern = ADAPTER_WEIGHTS if is_adapter else "model*.safetensors"
    if not any(folder.glob(pattern)):
        raise Unsupported(
            f"{given}: holds no {pattern}. Pickled weights (.bin, .pt) can run code when loaded and are not: convert "
            "them where you trust them, by loading the model and calling save_pretrained"
        )
    return Source(given, folder, is_adapter, _is_by_trl(folder))


def _find_folder(given: str) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists() or given.startswith((".", "/", "~")) or given.count("/") != 1:
        raise BackboneNotFound(f"no such folder: {given} (a hub id would be org/name)")
    try:
        return Path(snapshot_download(given, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client also lets through its HTTP library's, whichever that is
        raise BackboneNotFound(f"{given}: not a folder, and not to be had from the hub: {error}") from error


def _is_by_trl(folder: Path) -> bool:
    """By the card's tag, or by the class that training_args.bin names; its bytes are searched, never unpickled."""
    card = folder / "README.md"
    if card.is_file() and _TRL_CARD.search(card.read_text(encoding="utf-8", errors="replace")):
        return True
    try:
        with zipfile.ZipFile(folder / "training_args.bin") as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    except (OSError, zipfile.BadZipFile):
        return False
    return any(b"trl." in data and b"RewardConfig" in data for data in pickles)


def check_reward_model(source: Source) -> Any:
    """The config of a sequence-classification model with one label.

    Raises:
        Unsupported: an architecture that Transformers does not know, no reward head, several labels, or quantised
            weights.
    """
    config = read_config(source.folder, source.given)
    architectures = config.architectures or []
    if architectures and not any(name.endswith(_HEAD_CLASS) for name in architectures):
        raise Unsupported(
            f"{source.given}: {architectures[0]} has no reward head that Transformers loads; a reward model is a "
            f"…{_HEAD_CLASS} with one label (an adapter with its head on such a model is imported by its own folder)"
        )
    if config.num_labels != 1:
        raise Unsupported(
            f"{source.given}: num_labels is {config.num_labels}: a reward model has one output, and a classifier's "
            "logits are no rewards"
        )
    return config


def read_config(folder: Path, given: str) -> Any:
    """A model's config, by Transformers' own classes alone.

    Raises:
        Unsupported: unknown to Transformers without code of its own, or quantised.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise Unsupported(
            f"{given}: its config cannot be loaded (code of a model's own is never run): {reason}"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(f"{given}: its weights are quantised; import the model as it was before")
    return config


def check_class(source: Source, config: Any, model: Any) -> None:
    """The class that Transformers loaded is the one that was saved.

    Raises:
        Unsupported: the model came with a class of its own under the name of a known architecture.
    """
    name = type(model).__name__
    if config.architectures and name not in config.architectures:
        raise Unsupported(
            f"{source.given}: saved as {config.architectures[0]}, which Transformers does not have; loaded as {name} "
            "it could score otherwise"
        )
