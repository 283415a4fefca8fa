"""A tokenizer as the files that Hugging Face directories carry beside their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pangu_jax.weights.tokenizer_import import LoadedTokenizer


def write_tokenizer(loaded: LoadedTokenizer, folder: str | Path, *, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json (special tokens, chat template).

    Args:
      loaded: tokenizer and special ids.
      folder: an existing folder.
      max_length: longest context, in tokens.
    """
    folder = Path(folder)
    special = loaded.special
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(special, name)
        if number is not None:
            values[f"{name}_token"] = loaded.tokenizer.id_to_token(number)
    if special.chat_template is not None:
        values["chat_template"] = special.chat_template
    loaded.tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def special_ids(loaded: LoadedTokenizer) -> dict[str, int]:
    """Entries of config.json: bos_token_id, eos_token_id, pad_token_id, where there are any."""
    ids = {f"{name}_token_id": getattr(loaded.special, name) for name in ("bos", "eos", "pad")}
    return {key: number for key, number in ids.items() if number is not None}
