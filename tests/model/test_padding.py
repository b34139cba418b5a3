"""Padding at a text's ends: dropped, whatever the pad token also is; what is a text's own stays."""

from __future__ import annotations

import pytest

from quorum_client.types import ScoreItem
from quorum_model.errors import ItemRejected
from quorum_model.prompts import PLAIN_TEMPLATE, PromptEncoder
from tests.model.test_prompts import encoder_of, words
from tests.reference.tiny_tokenizers import bert_like, llama_like

BERT_PADS = ["[CLS] fine . [SEP] [PAD] [PAD]", "[PAD][PAD][CLS]fine .[SEP]", "[PAD] fine .[PAD]", "fine . [SEP] [SEP]"]


@pytest.mark.parametrize("text", BERT_PADS)
def test_padding_of_a_decoded_batch_is_no_text(text: str) -> None:
    """OpenRLHF before 0.9 pads its samples and decodes them, pads included."""
    encoder = encoder_of(bert_like(), is_causal=False)
    assert encoder.encode(ScoreItem(text=text)).ids == encoder.encode(ScoreItem(text="fine .")).ids


@pytest.mark.parametrize("text", ["<s> fine . </s>", "<s> fine . </s></s> </s>", "</s></s><s> fine . </s></s>"])
def test_a_pad_token_that_is_eos_closes_a_text_once(text: str) -> None:
    tokenizer = llama_like()
    assert tokenizer.pad_token == tokenizer.eos_token
    encoder = encoder_of(tokenizer, is_causal=True)
    assert words(tokenizer, encoder.encode(ScoreItem(text=text)).ids) == "<s> fine . </s>".split()
    assert words(tokenizer, encoder.encode(ScoreItem(text="fine .")).ids) == "<s> fine .".split()  # none is added


def test_a_pad_token_that_is_bos_opens_a_text_once() -> None:
    tokenizer = llama_like()
    tokenizer.pad_token = "<s>"
    encoder = PromptEncoder(tokenizer, template=PLAIN_TEMPLATE, bos_ids=[], eos_ids=[], max_length=64)
    assert words(tokenizer, encoder.encode(ScoreItem(text="<s><s> fine")).ids) == ["<s>", "fine"]


def test_a_pad_id_that_is_an_unknown_words_is_the_texts_own() -> None:
    tokenizer = llama_like()
    tokenizer.pad_token = "<unk>"
    encoder = encoder_of(tokenizer, is_causal=True)
    ids = encoder.encode(ScoreItem(text="<unk><unk><s> zzz fine zzz<unk>")).ids
    assert words(tokenizer, ids) == "<s> <unk> fine <unk>".split()


@pytest.mark.parametrize("pad", [None, "!"])
def test_what_may_be_a_texts_own_is_no_padding(pad: str | None) -> None:
    tokenizer = llama_like()
    tokenizer.pad_token = pad
    encoder = encoder_of(tokenizer, is_causal=True)
    assert words(tokenizer, encoder.encode(ScoreItem(text="fine ! !")).ids) == "<s> fine ! !".split()


def test_padding_alone_is_empty() -> None:
    with pytest.raises(ItemRejected) as caught:
        encoder_of(bert_like(), is_causal=False).encode(ScoreItem(text="[PAD] [PAD]"))
    assert caught.value.code == "empty_text"


def test_what_a_template_writes_after_eos_stays() -> None:
    tokenizer = llama_like()
    encoder = encoder_of(tokenizer, is_causal=True)
    assert words(tokenizer, encoder.encode(ScoreItem(text="fine </s> .")).ids) == "<s> fine </s> .".split()
