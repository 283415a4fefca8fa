"""Which tokens end a completion."""

from __future__ import annotations

from pangu_jax.weights.tokenizer_import import LoadedTokenizer

# Models end turns with a token of their own beside (or in place of) the end of a document, and
# files name only one of the two.
_ENDS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>",
    "<end_of_turn>", "<|end|>", "[unused10]",
)  # fmt: skip


def end_tokens(loaded: LoadedTokenizer) -> tuple[int, ...]:
    """Ids that end a completion: the model's own, and special tokens known to end turns."""
    ids = set() if loaded.special.eos is None else {loaded.special.eos}
    special = {
        token.content: number
        for number, token in loaded.tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    template = loaded.special.chat_template or ""
    for text in _ENDS:
        # '[unused10]' ends turns only where the template says so (openPangu).
        if text in special and (not text.startswith("[") or text in template):
            ids.add(special[text])
    return tuple(sorted(ids))
