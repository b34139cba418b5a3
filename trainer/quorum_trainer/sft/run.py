"""A supervised run: TRL's trainer on our dialogues, checkpoints, exact resume, and a folder that is whole or absent.

    SftConfig  --run-->  model and tokenizer in a folder, SftResult

Nothing of training itself is ours.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.sft_config import SFTConfig as TrlConfig
from trl.trainer.sft_trainer import SFTTrainer

from quorum_trainer.config import ConfigError
from quorum_trainer.runs.run_folder import RunFolder, write_folder
from quorum_trainer.sft.config import SftConfig
from quorum_trainer.sft.dialogues import Dialogue, load_dialogues
from quorum_trainer.sft.policy import load_policy
from quorum_trainer.training.keeper import TrainingInterrupted

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SftResult:
    """folder: of the model. steps: taken in all.

    train_loss, held_out_loss: cross entropy of a response's token in nats, as Transformers' trainer averages it: a
    batch's mean, and the mean of these; None where nothing was held out.
    """

    folder: Path
    parameters: int
    examples: int
    held_out: int
    steps: int
    train_loss: float
    held_out_loss: float | None


def run(
    config: SftConfig, target: Path, *, device: torch.device, keeper: RunFolder, resume: bool, say: Say = print
) -> SftResult:
    """Train, and write the model to `target`.

    Args:
        config: checked.
        target: must not exist.
        device: where to train.
        keeper: of the run's folder; asked whether to stop.
        resume: go on with the run that is there.
        say: is told of progress.

    Raises:
        ConfigError: `target` exists, or the run folder holds another run.
        DataError: the dialogues cannot be used.
        TrainingInterrupted: asked to stop; a checkpoint was written.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another --out")
    keeper.claim(config, {}, resume=resume)
    train, held_out = load_dialogues(config)
    model, tokenizer = load_policy(config, _texts(train))
    disable_progress_bars()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{len(train):,} dialogues, {len(held_out):,} held out; {parameters:,} parameters, {len(tokenizer):,} tokens")
    trainer = SFTTrainer(
        model=model,
        args=_arguments(config, keeper.path, device, has_held_out=bool(held_out)),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out) if held_out else None,
        processing_class=tokenizer,
        peft_config=_adapter(config),
        callbacks=[_Watch(keeper, say)],
    )
    trainer.remove_callback(PrinterCallback)
    done = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(keeper.path)) if resume else None)
    if keeper.is_asked_to_stop() and trainer.state.global_step < trainer.state.max_steps:
        raise TrainingInterrupted(f"stopped at step {trainer.state.global_step}; go on with --resume")
    loss = trainer.evaluate()["eval_loss"] if held_out else None
    _save(trainer, tokenizer, target, merge=config.lora is not None)
    for checkpoint in keeper.path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    keeper.close()
    return SftResult(
        target, parameters, len(train), len(held_out), trainer.state.global_step, float(done.training_loss), loss
    )


def _texts(dialogues: list[Dialogue]) -> list[str]:
    return [turn["content"] for one in dialogues for turn in one.turns()] + [one.response for one in dialogues]


def _dataset(dialogues: list[Dialogue]) -> Dataset:
    return Dataset.from_list([one.as_example() for one in dialogues])


def _adapter(config: SftConfig) -> LoraConfig | None:
    if config.lora is None:
        return None
    own = config.lora
    return LoraConfig(
        r=own.rank,
        lora_alpha=own.alpha,
        lora_dropout=own.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _arguments(config: SftConfig, folder: Path, device: torch.device, *, has_held_out: bool) -> TrlConfig:
    micro = config.micro_batch or config.batch
    return TrlConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=config.batch // micro,
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,  # below 1 it is a share of the steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        max_length=config.max_length,
        completion_only_loss=True,
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        use_cpu=device.type == "cpu",
        seed=config.seed,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if has_held_out else "no",
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=1,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
    )


class _Watch(TrainerCallback):  # type: ignore[misc]  # untyped in Transformers
    """Says how far training is, and stops it with a checkpoint where somebody asks."""

    def __init__(self, keeper: RunFolder, say: Say) -> None:
        self._keeper = keeper
        self._say = say

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """Stop after this step, if asked to."""
        if self._keeper.is_asked_to_stop():
            control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line each time the trainer has new figures."""
        said = logs or {}
        if "loss" in said:
            self._say(f"step {state.global_step} of {state.max_steps}: loss {float(said['loss']):.3f}")
        if "eval_loss" in said:
            loss = float(said["eval_loss"])
            self._say(f"step {state.global_step}: held-out loss {loss:.3f} (perplexity {math.exp(min(loss, 50)):.1f})")


def _save(trainer: SFTTrainer, tokenizer: Any, target: Path, *, merge: bool) -> None:
    """All of the folder or nothing."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if merge:
        model = model.merge_and_unload()
    model.config.use_cache = True

    def write(place: Path) -> None:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)

    write_folder(target, write)
