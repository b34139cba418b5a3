"""Prompt formats of imports: the same ids as TRL's own tokenisation, BOS and EOS as often as it has them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from quorum_client.types import Message
from quorum_model.errors import ItemRejected, Unsupported
from quorum_model.prompts import PromptEncoder
from quorum_trainer.importing.prompt_format import read_convention, to_format
from tests.reference.tiny_tokenizers import CHAT_TEMPLATE, bert_like, llama_like

PROMPT, RESPONSE = "how are you, world?", "fine, thanks!"
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
TEMPLATES = {
    "writes both": CHAT_TEMPLATE,
    "writes neither": CHATML,
    "writes two of each": "{{ bos_token }} <s> {% for m in messages %}{{ m['content'] }} </s> </s>{% endfor %}",
    "refuses a system turn": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
    "begins and ends in newlines": "\n\n{% for m in messages %}\n{{ m['content'] }} </s>\n{% endfor %}\n",
    "sets names of its own": "{% set whole_text = 'x' %}{% set ns = namespace(n=0) %}" + CHAT_TEMPLATE,
}


def encoder_of(
    tokenizer: Any, *, is_by_trl: bool = True, ignored_id: int | None = None, template: str | None = None
) -> PromptEncoder:
    convention = read_convention(tokenizer, template=template, is_by_trl=is_by_trl, ignored_id=ignored_id)
    return to_format(convention, tokenizer, tokenizer).encoder(tokenizer, max_length=200)


def trl_ids(tokenizer: Any, *, conversational: bool) -> list[int]:
    """By RewardTrainer's own preparation of a data set."""
    from trl import RewardConfig, RewardTrainer

    prompt: Any = [{"role": "user", "content": PROMPT}] if conversational else PROMPT
    response: Any = [{"role": "assistant", "content": RESPONSE}] if conversational else RESPONSE
    rows = Dataset.from_list([{"prompt": prompt, "chosen": response, "rejected": response}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = RewardConfig(output_dir="unused", use_cpu=True, bf16=False, report_to=[])
        prepare = RewardTrainer._prepare_dataset
        prepared = prepare(object.__new__(RewardTrainer), rows, tokenizer, config, "train")
    ids: list[int] = list(prepared["chosen_ids"][0])
    return ids


@pytest.mark.parametrize("ignored_id", [None, 2], ids=["pad is another token", "pad is eos"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_give_trls_ids(name: str, ignored_id: int | None) -> None:
    tokenizer = llama_like()
    tokenizer.chat_template = TEMPLATES[name]
    expected = trl_ids(tokenizer, conversational=True)
    while expected[-1] == ignored_id:
        expected.pop()
    encoder = encoder_of(tokenizer, ignored_id=ignored_id)
    assert encoder.encode_pair(PROMPT, RESPONSE).ids == expected
    assert {"writes both": 1, "writes neither": 0, "writes two of each": 2}.get(name, expected.count(1)) == (
        expected.count(1)
    )


@pytest.mark.parametrize("ignored_id", [None, 2], ids=["pad is another token", "pad is eos"])
def test_standard_format_gives_trls_ids(ignored_id: int | None) -> None:
    for tokenizer in (llama_like(chat=False), bert_like()):
        tokenizer.eos_token = tokenizer.eos_token or "[SEP]"  # TRL needs one; then BERT's sequences end in two
        expected = trl_ids(tokenizer, conversational=False)
        while expected[-1] == ignored_id:
            expected.pop()
        assert encoder_of(tokenizer, ignored_id=ignored_id).encode_pair(PROMPT, RESPONSE).ids == expected


def test_without_trl_a_text_gets_the_tokenizers_own_special_tokens() -> None:
    for tokenizer in (llama_like(chat=False), bert_like()):
        expected = tokenizer(PROMPT + RESPONSE)["input_ids"]
        encoder = encoder_of(tokenizer, is_by_trl=False)
        assert encoder.encode_pair(PROMPT, RESPONSE).ids == expected
        assert encoder.encode_pair([Message(role="user", content=PROMPT)], RESPONSE).ids == expected


def test_a_model_of_one_prompt_refuses_a_dialogue() -> None:
    dialogue = [Message(role=role, content="one") for role in ("user", "assistant", "user")]
    with pytest.raises(ItemRejected, match="refuses this dialogue"):
        encoder_of(bert_like()).encode_pair(dialogue, RESPONSE)


def test_a_given_template_says_everything() -> None:
    template = "[CLS] {{ messages[0]['content'] }} [SEP] {{ messages[1]['content'] }} [SEP]"
    tokenizer = bert_like()
    encoder = encoder_of(tokenizer, template=template)
    assert encoder.encode_pair(PROMPT, RESPONSE).ids == tokenizer(PROMPT, RESPONSE)["input_ids"]


def test_bos_survives_a_cut_of_a_long_prompt() -> None:
    tokenizer = llama_like()
    convention = read_convention(tokenizer, template=None, is_by_trl=True, ignored_id=None)
    made = to_format(convention, tokenizer, tokenizer)
    cut = made.encoder(tokenizer, max_length=12).encode_pair("one two three four five six seven eight", RESPONSE)
    assert cut.truncated
    assert (made.bos_ids, made.eos_ids) == ([1], [2])
    assert (cut.ids[0], cut.ids[-1], len(cut.ids)) == (1, 2, 12)


def test_templates_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    tokenizer = llama_like()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(Unsupported, match="refuses a prompt with its response"):
        encoder_of(tokenizer)
    tokenizer.chat_template = {"one": CHATML, "two": CHATML}
    with pytest.raises(Unsupported, match="no default"):
        encoder_of(tokenizer)
    # The pad token ends some texts and not others: where the model looks for the last token depends on the text.
    tokenizer.chat_template = CHATML + "{% if messages | length > 2 %}</s>{% endif %}"
    with pytest.raises(Unsupported, match="cannot be kept"):
        encoder_of(tokenizer, ignored_id=2)
