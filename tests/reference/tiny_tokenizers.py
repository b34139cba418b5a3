"""Tiny fast tokenizers made here: a BERT-like one and a Llama-like one with BOS and a chat template."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (
    "human assistant system tool : hello world how are you fine thanks what is the capital of france paris no yes "
    "one two three four five six seven eight nine ten . , ? ! < | > user"
).split()

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | trim }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def bert_like(*, first: tuple[str, ...] = ("[PAD]", "[CLS]", "[SEP]")) -> PreTrainedTokenizerFast:
    """[CLS] text [SEP]; words and single characters. first: the tokens of ids 0, 1 and 2."""
    vocab = [*first, "[UNK]", *WORDS, *(chr(c) for c in range(97, 123))]
    vocab = list(dict.fromkeys(vocab))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, first.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def llama_like(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """<s> text; the chat template writes <s> as well, so that a careless tokeniser would give two."""
    vocab = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", *WORDS,
             *(chr(c) for c in range(97, 123))]  # fmt: skip
    vocab = list(dict.fromkeys(vocab))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )  # fmt: skip
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast
