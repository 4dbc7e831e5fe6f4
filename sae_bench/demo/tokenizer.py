"""The tokenizer: one token a word or punctuation mark, case-sensitive, in Hugging Face's fast format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from sae_bench.demo.language.sentence import BOS
from sae_bench.demo.language.vocabulary import UNKNOWN, vocabulary

CONTEXT = 128
"""Tokens the model can read."""


def build_tokenizer() -> Any:
    """Build the tokenizer of the language. Like GPT-2's it adds no <bos> by itself."""
    ids = {word: index for index, word in enumerate(vocabulary())}
    core = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    # Splits punctuation off, so that "Anna is kind." reads the same as the generators' "Anna is kind .".
    core.pre_tokenizer = Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    build_tokenizer().save_pretrained(folder)
