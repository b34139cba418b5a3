"""A supervised training run as data: which model, which dialogues, how long.

    CONFIG.yaml  --read_sft_config-->  SftConfig

Knows no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_trainer.config.base import ConfigError, ConfigModel
from quorum_trainer.config.read import folder_or_id, read_model, resolve_path


class NewModel(ConfigModel):
    """A Llama that does not exist yet: random weights, and a byte-level BPE tokenizer made from the training texts.

    vocab_size: of the tokenizer, at most. max_positions: longest sequence that it will ever see.
    """

    layers: int = Field(8, ge=1)
    hidden: int = Field(384, ge=8)
    ffn: int = Field(1024, ge=8)
    heads: int = Field(6, ge=1)
    key_heads: int = Field(2, ge=1)
    vocab_size: int = Field(8192, ge=300)
    max_positions: int = Field(2048, ge=16)

    @model_validator(mode="after")
    def _check_heads(self) -> NewModel:
        if self.hidden % (2 * self.heads) or self.heads % self.key_heads:
            raise ValueError("heads must split hidden into even parts, and key_heads must divide heads")
        return self


class Dialogues(ConfigModel):
    """A set of dialogues: a file, or a data set of the hub.

    path: JSON lines (.gz too) of `prompt` (text or messages) and `response`, or of `messages` that end with the
    assistant's. hub: an id or a folder for `datasets.load_dataset`, with such columns; of it `split`.
    held_out: share of its prompts kept out of training. max_examples: at most so many, drawn at random.
    """

    name: str = Field(pattern=NAME_PATTERN)
    path: str | None = Field(None, min_length=1)
    hub: str | None = Field(None, min_length=1)
    split: str = "train"
    held_out: float = Field(0.02, ge=0, lt=1)
    max_examples: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_place(self) -> Dialogues:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        return self


class Adapter(ConfigModel):
    """Train LoRA on every linear layer, and merge it when done."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class SftConfig(ConfigModel):
    """Everything that a supervised run depends on.

    model: folder or hub id of a causal model; revision: of a hub id. new_model: instead of one. lora: an adapter in
    place of all weights. max_length: longer dialogues are cut at the end. micro_batch: dialogues that are held at once,
    all of the batch if left out. lr: peak rate, after `warmup` (share of the steps), then falling as `schedule` says.
    Only the response is learned, never the prompt.
    """

    name: str = Field(pattern=NAME_PATTERN)
    model: str | None = None
    revision: str | None = None
    new_model: NewModel | None = None
    data: list[Dialogues] = Field(min_length=1)
    lora: Adapter | None = None
    max_length: int = Field(512, ge=8)
    epochs: float = Field(1, gt=0, allow_inf_nan=False)
    batch: int = Field(16, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    warmup: float = Field(0.03, ge=0, lt=1)
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(200, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> SftConfig:
        if (self.model is None) == (self.new_model is None):
            raise ValueError("give exactly one of model and new_model")
        if self.revision is not None and self.model is None:
            raise ValueError("revision is of a model")
        if self.new_model is not None and self.max_length > self.new_model.max_positions:
            raise ValueError("max_length: new_model has fewer positions (max_positions)")
        if self.new_model is not None and self.lora is not None:
            raise ValueError("lora: an adapter on random weights learns nothing")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError("batch: must be a multiple of micro_batch")
        return self


def read_sft_config(path: Path) -> SftConfig:
    """Read and check a config; paths are relative to its folder.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing field, an environment variable that is not set.
    """
    config = read_model(path, SftConfig)
    folder = path.parent
    data = []
    for source in config.data:
        what = f"data {source.name}"
        if source.path is not None:
            data.append(source.model_copy(update={"path": str(resolve_path(source.path, folder, what))}))
        else:
            data.append(source.model_copy(update={"hub": folder_or_id(source.hub, folder, what)}))
    model = folder_or_id(config.model, folder, "model")
    if config.revision is not None and model != config.model:
        raise ConfigError("revision is for hub ids: a folder has none")
    return config.model_copy(update={"data": data, "model": model})
