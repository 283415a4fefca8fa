"""Examples as tokens with a mark on each token that is to be learned; what became of long ones."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.records import Chat, Pair
from pangu_jax.training.sft.spans import Rendered, TrainOn, render_spans
from pangu_jax.weights import LoadedTokenizer

_CHUNK = 512  # texts given to the tokenizer at a time


class Tokens(NamedTuple):
    """tokens: int32 [n]. learn: bool [n], the tokens that are targets (never the first)."""

    tokens: np.ndarray
    learn: np.ndarray


class Example(NamedTuple):
    """What stays together in a row: one sequence, or a pair's better and worse one.

    weight: of the example in the loss. where: its origin.
    """

    sequences: tuple[Tokens, ...]
    weight: float = 1.0
    where: str = ""

    @property
    def size(self) -> int:
        return sum(len(s.tokens) for s in self.sequences)

    @property
    def labels(self) -> int:
        return sum(int(s.learn.sum()) for s in self.sequences)


@dataclasses.dataclass
class EncodeReport:
    """How many examples came in, what was left out or shortened and why; tokens of those kept.

    dropped: by reason. cut_across: tokens that lie across the edge of an answer (not learned).
    """

    read: int = 0
    kept: int = 0
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    truncated: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    cut_across: int = 0
    empty_answers: int = 0

    def lines(self) -> list[str]:
        """For people: one line, and one for each thing that was left out or changed."""
        share = self.learned / max(self.tokens, 1)
        out = [
            f"{self.kept:,} of {self.read:,} examples, {self.tokens:,} tokens, of which "
            f"{self.learned:,} ({share:.0%}) are learned; the longest has {self.longest:,}."
        ]
        out += [f"left out: {n:,} {reason}" for reason, n in sorted(self.dropped.items())]
        if self.truncated:
            out.append(f"shortened to fit a row: {self.truncated:,}")
        if self.cut_across:
            out.append(f"tokens across the edge of an answer, not learned: {self.cut_across:,}")
        if self.empty_answers:
            out.append(f"answers without text: {self.empty_answers:,}")
        return out


class Encoder:
    """Chats and pairs to examples.

    Args:
      tokenizer: with a chat template, unless only raw chats come.
      train_on: which answers count, see `render_spans`.
      max_tokens: room for one example (both answers of a pair together).
      too_long: 'drop' leaves such examples out, 'truncate' cuts the end off (of both answers of a
        pair, to half the room each), 'error' refuses.
    """

    def __init__(
        self, tokenizer: LoadedTokenizer, *, train_on: TrainOn = "all_assistant", max_tokens: int,
        too_long: Literal["drop", "truncate", "error"] = "drop",
    ):  # fmt: skip
        self._loaded, self._train_on = tokenizer, train_on
        self._max_tokens, self._too_long = max_tokens, too_long
        self._tokenizer = _exact_offsets(tokenizer)
        self._special = {
            i for i, t in tokenizer.tokenizer.get_added_tokens_decoder().items() if t.special
        }
        self.report = EncodeReport()

    def encode(self, examples: Iterable[Chat | Pair]) -> list[Example]:
        """The examples that fit, in order; `report` counts all that happened.

        Raises:
          FineTuneError: what rendering refuses; a too long one under too_long='error'; nothing
            left to learn from.
        """
        out, waiting = [], []
        for example in examples:
            waiting.append(example)
            if len(waiting) == _CHUNK:
                out += self._encode(waiting)
                waiting = []
        out += self._encode(waiting)
        if not out:
            raise FineTuneError(
                "No example is left to learn from. "
                + " ".join(self.report.lines())
                + " Raise --config.seq_len, or look at the data."
            )
        return out

    def _encode(self, examples: Sequence[Chat | Pair]) -> list[Example]:
        rendered: list[Rendered] = []
        groups: list[tuple[Chat | Pair, list[int]]] = []  # places in `rendered` of each group
        for example in examples:
            chats = (example,) if isinstance(example, Chat) else (example.chosen, example.rejected)
            self.report.empty_answers += sum(
                not m["content"] and not m.get("tool_calls") and m.get("role") == "assistant"
                for chat in chats for m in chat.messages
            )  # fmt: skip
            texts = [self._render(chat, isinstance(example, Pair)) for chat in chats]
            # A pair has one text on each side, a chat may have one for every answer.
            together = [list(t) for t in zip(*texts, strict=True)]
            for parts in together:
                groups.append((example, list(range(len(rendered), len(rendered) + len(parts)))))
                rendered += parts
        self.report.read += len(groups)
        encodings = self._tokenizer.encode_batch(
            [r.text for r in rendered], add_special_tokens=False
        )
        out = []
        for example, places in groups:
            sequences = [self._mark(rendered[i], encodings[i]) for i in places]
            kept = self._fit(sequences, example)
            if kept is not None:
                out.append(Example(kept, example.weight, example.where))
                self._count(out[-1])
        return out

    def _render(self, chat: Chat, pair: bool) -> list[Rendered]:
        if chat.raw:
            prompt, answer = (m["content"] for m in chat.messages)
            end = self._loaded.special.eos
            closing = "" if end is None else self._loaded.tokenizer.id_to_token(end)
            text = prompt + answer + closing
            return [Rendered(text, ((len(prompt), len(text)),))]
        return render_spans(self._loaded, chat, "last_assistant" if pair else self._train_on)

    def _mark(self, rendered: Rendered, encoding) -> Tokens:
        tokens = np.array(encoding.ids, np.int32)
        at = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        learn = np.zeros(len(tokens), bool)
        for start, stop in rendered.spans:
            inside = (at[:, 0] >= start) & (at[:, 1] <= stop) & (at[:, 1] > at[:, 0])
            across = (at[:, 0] < stop) & (at[:, 1] > start) & ~inside
            self.report.cut_across += int(across.sum())
            places = np.flatnonzero(inside)
            # What a template puts behind the end of a turn (a line break) is never generated.
            solid = [p for p in places if rendered.text[slice(*at[p])].strip()]
            if solid and tokens[solid[-1]] in self._special:
                places = places[places <= solid[-1]]
            learn[places] = True
        learn[:1] = False  # nothing comes before the first token
        last = int(np.flatnonzero(learn)[-1]) + 1 if learn.any() else 0
        return Tokens(tokens[:last], learn[:last])

    def _fit(self, sequences: list[Tokens], example) -> tuple[Tokens, ...] | None:
        dropped = self.report.dropped
        if any(not s.learn.any() for s in sequences):
            dropped["without a token to learn"] += 1
            return None
        if sum(len(s.tokens) for s in sequences) <= self._max_tokens:
            return tuple(sequences)
        size = sum(len(s.tokens) for s in sequences)
        if self._too_long == "error":
            raise FineTuneError(
                f"{example.where} has {size:,} tokens, more than --config.seq_len="
                f"{self._max_tokens:,}; raise it, or set --config.data.too_long to drop or "
                "truncate."
            )
        if self._too_long == "drop":
            dropped[f"with more than {self._max_tokens:,} tokens"] += 1
            return None
        room = self._max_tokens // len(sequences)
        cut = tuple(Tokens(s.tokens[:room], s.learn[:room]) for s in sequences)
        if any(not s.learn.any() for s in cut):
            dropped[f"whose answer begins behind {room:,} tokens"] += 1
            return None
        self.report.truncated += 1
        return cut

    def _count(self, example: Example) -> None:
        report = self.report
        report.kept += 1
        report.tokens += example.size
        report.learned += example.labels
        report.longest = max(report.longest, example.size)


def _exact_offsets(loaded: LoadedTokenizer):
    """The tokenizer as a copy whose offsets say where each token really begins and ends.

    A byte-level post-processor moves offsets off the blanks at a token's edges; without special
    tokens to add, a post-processor does nothing else.
    """
    from tokenizers import Tokenizer, processors

    copy = Tokenizer.from_str(loaded.tokenizer.to_str())
    copy.post_processor = processors.ByteLevel(trim_offsets=False)
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = loaded.tokenizer.encode_special_tokens
    return copy
