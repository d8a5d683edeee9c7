"""A tokenizer of so many words, with a template for chats."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.areal.token_server import VOCABULARY


def saved_tokenizer(folder: Path) -> Path:
    """Writes it into a folder as `transformers` reads it."""
    if not folder.exists():
        words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", eos_token="t31", pad_token="t30")
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        tokenizer.save_pretrained(folder)
    return folder
