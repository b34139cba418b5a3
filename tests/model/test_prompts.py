"""From items to token ids: templates, BOS and EOS exactly once, truncation that keeps the response."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer

from quorum_client.types import Message, ScoreItem
from quorum_model.errors import ItemRejected
from quorum_model.prompts import PLAIN_TEMPLATE, PromptEncoder, default_prompt_format, special_ids
from tests.reference.tiny_tokenizers import CHAT_TEMPLATE, bert_like, llama_like

PROMPT = "how are you ?"
RESPONSE = "fine thanks ."


def encoder_of(tokenizer: object, *, is_causal: bool, max_length: int = 64) -> PromptEncoder:
    prompt, bos_ids, eos_ids = default_prompt_format(tokenizer, is_causal=is_causal)
    return PromptEncoder(tokenizer, template=prompt.template, bos_ids=bos_ids, eos_ids=eos_ids, max_length=max_length)


def words(tokenizer: object, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)  # type: ignore[attr-defined, no-any-return]


def test_plain_format_of_an_encoder() -> None:
    tokenizer = bert_like()
    encoded = encoder_of(tokenizer, is_causal=False).encode(ScoreItem(prompt="how are you ?", response="fine ."))
    expected = "[CLS] [UNK] : how are you ? [UNK] : fine . [SEP]".split()
    assert words(tokenizer, encoded.ids) == expected  # Human and Assistant are not in the tiny vocabulary
    assert not encoded.truncated


def test_chat_template_equals_transformers_own_tokenisation() -> None:
    tokenizer = llama_like()
    messages = [{"role": "system", "content": "hello"}, {"role": "user", "content": PROMPT}]
    expected = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": RESPONSE}], tokenize=True, return_dict=False
    )
    item = ScoreItem(prompt=[Message.model_validate(m) for m in messages], response=RESPONSE)
    assert encoder_of(tokenizer, is_causal=True).encode(item).ids == expected
    assert expected.count(tokenizer.bos_token_id) == 1


def test_bos_exactly_once_whoever_writes_it() -> None:
    tokenizer = llama_like()
    encoder = encoder_of(tokenizer, is_causal=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}], tokenize=False
    )
    with_bos = encoder.encode(ScoreItem(text=text)).ids
    without_bos = encoder.encode(ScoreItem(text=text.removeprefix("<s>"))).ids
    pair = encoder.encode(ScoreItem(prompt=PROMPT, response=RESPONSE)).ids
    assert with_bos == without_bos == pair
    assert with_bos.count(tokenizer.bos_token_id) == 1
    assert len(tokenizer(text)["input_ids"]) == len(with_bos) + 1  # what a naive server would score


def test_token_ids_are_taken_as_they_are() -> None:
    encoder = encoder_of(llama_like(), is_causal=True)
    assert encoder.encode(ScoreItem(token_ids=[7, 8, 9])).ids == [7, 8, 9]


def test_decoder_without_a_template_is_closed_by_eos() -> None:
    tokenizer = llama_like(chat=False)
    prompt, bos_ids, eos_ids = default_prompt_format(tokenizer, is_causal=True)
    assert (prompt.template, prompt.origin) == (PLAIN_TEMPLATE, "plain")
    assert (bos_ids, eos_ids) == ([tokenizer.bos_token_id], [tokenizer.eos_token_id])
    ids = encoder_of(tokenizer, is_causal=True).encode(ScoreItem(prompt=PROMPT, response=RESPONSE)).ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1


def test_special_ids() -> None:
    assert special_ids(bert_like()) == ([1], [2])
    assert special_ids(llama_like()) == ([1], [])


def test_fingerprint_tells_formats_apart() -> None:
    chat, _, _ = default_prompt_format(llama_like(), is_causal=True)
    plain, _, _ = default_prompt_format(llama_like(chat=False), is_causal=True)
    again, _, _ = default_prompt_format(llama_like(), is_causal=True)
    assert chat.template == CHAT_TEMPLATE
    assert chat.fingerprint == again.fingerprint != plain.fingerprint


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_prompt_is_cut_first_and_the_response_kept(side: str) -> None:
    tokenizer = llama_like()
    whole = encoder_of(tokenizer, is_causal=True).encode(ScoreItem(prompt="one two three four five", response="yes no"))
    # <s> <|user|> one two three four five </s> <|assistant|> yes no </s>
    assert len(whole.ids) == 12
    cut = encoder_of(tokenizer, is_causal=True, max_length=9).encode(
        ScoreItem(prompt="one two three four five", response="yes no"), side
    )
    kept = words(tokenizer, cut.ids)
    assert cut.truncated
    assert len(kept) == 9
    assert kept[0] == "<s>"
    assert kept[-4:] == ["<|assistant|>", "yes", "no", "</s>"]
    assert kept[1:5] == (["three", "four", "five", "</s>"] if side == "left" else ["<|user|>", "one", "two", "three"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_response_too_long_for_itself_is_cut_at_the_same_end(side: str) -> None:
    tokenizer = bert_like()
    encoder = encoder_of(tokenizer, is_causal=False, max_length=8)
    cut = encoder.encode(ScoreItem(prompt="hello", response="one two three four five six seven eight"), side)
    kept = words(tokenizer, cut.ids)
    assert cut.truncated
    assert (kept[0], kept[-1], len(kept)) == ("[CLS]", "[SEP]", 8)
    assert kept[1:-1] == (["three", "four", "five", "six", "seven", "eight"] if side == "left" else
                          ["[UNK]", ":", "one", "two", "three", "four"])  # fmt: skip


@given(
    prompt=st.integers(1, 40), response=st.integers(1, 40), max_length=st.integers(8, 60),
    side=st.sampled_from(["left", "right"]), decoder=st.booleans(),
)  # fmt: skip
def test_length_and_specials_hold_for_every_cut(
    prompt: int, response: int, max_length: int, side: str, decoder: bool
) -> None:
    tokenizer = llama_like() if decoder else bert_like()
    item = ScoreItem(prompt=" ".join(["one"] * prompt), response=" ".join(["two"] * response))
    whole = encoder_of(tokenizer, is_causal=decoder, max_length=1000).encode(item)
    cut = encoder_of(tokenizer, is_causal=decoder, max_length=max_length).encode(item, side)
    assert cut.truncated == (len(whole.ids) > max_length)
    assert len(cut.ids) == min(len(whole.ids), max_length)
    assert cut.ids[0] == whole.ids[0] == (tokenizer.bos_token_id if decoder else tokenizer.cls_token_id)
    assert cut.ids.count(cut.ids[0]) == 1
    two = tokenizer.convert_tokens_to_ids("two")
    header = 3 if not decoder else 2  # what else the response's side of the text holds, special tokens included
    assert cut.ids.count(two) >= min(response, max_length - header - 2)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ({"prompt": "hello", "response": ""}, "empty_text"),
        ({"prompt": "hello", "response": " \n\t"}, "empty_text"),
        ({"prompt": " ", "response": "yes"}, "empty_text"),
        ({"text": "  "}, "empty_text"),
        ({"token_ids": []}, "empty_text"),
        ({"token_ids": [1, 2]}, "empty_text"),
        ({"prompt": "hello", "response": "[SEP]"}, "empty_text"),
        ({"prompt": "hello", "response": "[PAD] " * 100}, "empty_text"),
        ({"token_ids": [10**6]}, "token_id_out_of_range"),
    ],
)
def test_items_that_cannot_be_scored(item: dict[str, object], code: str) -> None:
    with pytest.raises(ItemRejected) as caught:
        encoder_of(bert_like(), is_causal=False).encode(ScoreItem.model_validate(item))
    assert caught.value.code == code


def test_lone_surrogates_are_rejected() -> None:
    item = ScoreItem.model_construct(prompt="hello", response="a\ud800b", text=None, token_ids=None, reference=None)
    with pytest.raises(ItemRejected) as caught:
        encoder_of(bert_like(), is_causal=False).encode(item)
    assert caught.value.code == "invalid_unicode"


def test_too_long_is_an_error_where_asked() -> None:
    encoder = encoder_of(bert_like(), is_causal=False, max_length=8)
    with pytest.raises(ItemRejected, match="exceed the maximum of 8"):
        encoder.encode(ScoreItem(prompt="one two three four", response="five six seven"), "error")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no: ' + messages[0]['content']) }}",
        "{{ messages[0]['content'] + 1 }}",  # TypeError
        "{{ {}[messages[0]['content']].more }}",  # UndefinedError
    ],
)
def test_a_template_that_refuses_the_dialogue(template: str) -> None:
    encoder = PromptEncoder(llama_like(), template=template, bos_ids=[1], eos_ids=[], max_length=64)
    with pytest.raises(ItemRejected) as caught:
        encoder.encode(ScoreItem(prompt="hello", response="yes"))
    assert caught.value.code == "dialogue_refused"
    assert "hello" not in caught.value.message


@pytest.mark.parametrize("text", ["\x00", "[CLS]", "[CLS][SEP]", "\x00\x01"])
def test_text_of_nothing_but_special_tokens_is_empty(text: str) -> None:
    tokenizer = bert_like()
    tokenizer.backend_tokenizer.normalizer = BertNormalizer()  # drops control characters
    with pytest.raises(ItemRejected) as caught:
        encoder_of(tokenizer, is_causal=False).encode(ScoreItem(text=text))
    assert caught.value.code == "empty_text"


def test_a_response_that_begins_with_nothing_is_no_empty_one() -> None:
    encoder = encoder_of(bert_like(), is_causal=False, max_length=2000)
    assert encoder.encode(ScoreItem(prompt="hello", response="\u200b" * 300 + "fine")).ids
    assert encoder.encode(ScoreItem(prompt="hello", response="zzz")).ids  # an unknown word is a word


def test_closing_tokens_without_end_are_looked_at_once() -> None:
    """Cutting them off one by one by slices would copy the rest each time: n closing tokens would cost n² steps."""

    class Counting(list[int]):
        read = 0

        def __getitem__(self, place: object) -> object:
            found = super().__getitem__(place)  # type: ignore[index]
            Counting.read += len(found) if isinstance(found, list) else 1
            return found

    encoder = encoder_of(bert_like(), is_causal=False)
    ids = Counting([1, 5, *[2] * 2000])
    assert encoder._without_specials(ids) == [5]
    assert Counting.read < 3 * len(ids)


@pytest.mark.parametrize("response", ["\u200b\x07\ufeff", "\u00ad", "\x07 \x00"])
def test_a_response_of_characters_that_the_tokenizer_drops_is_empty(response: str) -> None:
    tokenizer = bert_like()
    tokenizer.backend_tokenizer.normalizer = BertNormalizer()
    with pytest.raises(ItemRejected, match="response has no tokens") as caught:
        encoder_of(tokenizer, is_causal=False).encode(ScoreItem(prompt="hello", response=response))
    assert caught.value.code == "empty_text"


TEXTS = [
    "<s> how are you ? fine thanks .",
    "how are you ? fine thanks .",
    "</s></s><s> how are you ? fine thanks . </s>",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["how are you ?", "<s> how are you ?", "</s><s> how are you ?"])
def test_a_texts_own_prompt_is_cut_first(text: str, prompt: str) -> None:
    tokenizer = llama_like()
    encoder = encoder_of(tokenizer, is_causal=True, max_length=6)
    closing = ["</s>"] if text.endswith("</s>") else []
    room = 2 - len(closing)
    for side, kept in (("left", "you ?".split()[-room:]), ("right", "how are".split()[:room])):
        item = ScoreItem(text=text, prompt=prompt)
        encoded = encoder.encode(item, side)  # type: ignore[arg-type]
        assert encoded.truncated
        assert words(tokenizer, encoded.ids) == ["<s>", *kept, "fine", "thanks", ".", *closing]


def test_a_prompt_that_a_text_does_not_begin_with_is_nothing() -> None:
    encoder = encoder_of(llama_like(), is_causal=True, max_length=4)
    for prompt in ("fine", "", "how are you ? fine no"):
        item = ScoreItem(text="how are you ? fine", prompt=prompt)
        assert encoder.encode(item) == encoder.encode(ScoreItem(text="how are you ? fine"))


@pytest.mark.parametrize(
    "text", ["how are you ?", "<s> how are you ? </s>", "how are you ? </s></s>", "how are you ?  "]
)
def test_a_text_with_nothing_behind_its_prompt_is_empty(text: str) -> None:
    with pytest.raises(ItemRejected) as caught:
        encoder_of(llama_like(), is_causal=True).encode(ScoreItem(text=text, prompt="how are you ?"))
    assert caught.value.code == "empty_text"
