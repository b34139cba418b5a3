"""What TRL's RewardTrainer saves, imported: the token ids of its training, and the scores of its model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from quorum_trainer.importing.build import ImportOptions, import_models
from quorum_trainer.importing.sources import find_source
from tests.reference.tiny_tokenizers import llama_like
from tests.trainer.importing.saved_models import PAIRS, save_model, served_ids, served_scores

OPTIONS = ImportOptions(name="toy")


def preferences(*, conversational: bool) -> Dataset:
    rows = []
    for prompt, response in PAIRS:
        if conversational:
            row: dict[str, Any] = {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": response}],
                "rejected": [{"role": "assistant", "content": "no no"}],
            }
        else:
            row = {"prompt": prompt, "chosen": response, "rejected": "no no"}
        rows.append(row)
    return Dataset.from_list(rows)


def train(base: Path, out: Path, *, conversational: bool, peft: bool, tokenizer: Any = None) -> Any:
    """A real run of a few steps; saved by TRL itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import RewardConfig, RewardTrainer

        torch.manual_seed(0)
        config = RewardConfig(
            output_dir=str(out), use_cpu=True, bf16=False, max_steps=3, per_device_train_batch_size=3, report_to=[],
            learning_rate=1e-2, save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32),
            args=config,
            train_dataset=preferences(conversational=conversational),
            processing_class=tokenizer or AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(task_type="SEQ_CLS", r=4) if peft else None,
        )
        trainer.train()
        trainer.save_model(str(out))
    return trainer


@pytest.mark.parametrize("peft", [False, True], ids=["full", "peft"])
@pytest.mark.parametrize("conversational", [True, False], ids=["conversational", "standard"])
@pytest.mark.parametrize("name", ["llama-own-pad", "llama-no-pad"])
def test_imports_what_trl_trained(name: str, conversational: bool, peft: bool, tmp_path: Path) -> None:
    base = save_model(name, tmp_path / "base", chat=conversational)
    tokenizer = llama_like(chat=conversational)
    if name == "llama-own-pad":
        tokenizer.pad_token = "<unk>"
    trainer = train(base, tmp_path / "trl", conversational=conversational, peft=peft, tokenizer=tokenizer)
    assert find_source(str(tmp_path / "trl")).is_by_trl

    bundle = import_models([str(tmp_path / "trl")], tmp_path / "bundle", OPTIONS).bundle
    assert bundle.manifest.kind == ("lora" if peft else "single")

    trained = [list(ids) for ids in trainer.train_dataset["chosen_ids"]]
    assert all(ids[:2].count(1) == 1 and ids[-1] == 2 for ids in trained)  # one BOS, and a closing EOS
    pad = trainer.processing_class.pad_token_id
    served = [served_ids(bundle.path, *pair) for pair in PAIRS]
    # Where EOS is the pad token, Transformers scores the token before it, and the bundle ends there.
    assert served == ([ids[:-1] for ids in trained] if pad == 2 else trained)

    model = trainer.model.eval()
    with torch.no_grad():
        # As TRL runs it: padded to the batch's longest, with the mask of its collator.
        batch = trainer.data_collator([{"chosen_ids": ids, "rejected_ids": ids} for ids in trained])
        padded = model(**batch).logits[: len(trained), 0].tolist()
        alone = [float(model(input_ids=torch.tensor([ids])).logits) for ids in trained]
    actual = np.array(served_scores(bundle.path))[:, 0]
    np.testing.assert_allclose(actual, alone, rtol=1e-5, atol=2e-5)  # fp32, other attention kernels
    np.testing.assert_allclose(actual, padded, rtol=1e-5, atol=5e-5)


def test_trl_is_known_by_its_card_too_and_no_pickle_is_opened(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "model")
    assert not find_source(str(folder)).is_by_trl
    (folder / "README.md").write_text("---\ntags:\n- generated_from_trainer\n- reward-trainer\n- trl\n---\n")
    assert find_source(str(folder)).is_by_trl
    (folder / "README.md").unlink()
    (folder / "training_args.bin").write_bytes(b"no archive")
    assert not find_source(str(folder)).is_by_trl
    torch.save({"ran": Bomb()}, folder / "training_args.bin")
    assert not find_source(str(folder)).is_by_trl


class Bomb:
    """Whoever unpickles it fails."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))
