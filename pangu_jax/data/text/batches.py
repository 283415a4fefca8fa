"""Packed batches of a mixture for grain: resumable anywhere, the same for any number of processes.

R rows, T tokens a row, K batches per dispatch.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Literal

import grain
import numpy as np

from pangu_jax.data.text.errors import TextDataError, choose_from
from pangu_jax.data.text.mixture import Mixture, RowSchedule, epoch_order, selected_documents
from pangu_jax.data.text.packing import ConcatRows, Pieces, ShuffledRows, WholeRows
from pangu_jax.data.text.shard_reader import TextShards

FIELDS = ("tokens", "labels", "segment_ids", "positions")
NO_LABEL = -1
# grain divides lengths as floats; a power of two below sys.maxsize stays in range.
_ENDLESS = 1 << 60


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """rows: 'concat' puts documents end to end and cuts them at the end of a row, without padding;
    'whole' cuts only documents longer than a row and pads.

    long_documents: those of more than seq_len tokens are cut into pieces ('split'), lose what
    goes beyond ('truncate'), or are refused ('error').

    shuffle_rows: rows of a domain change places within windows of this many, so that a batch is not
    made of successive pieces of one long document; 0 leaves them in order. The next phase begins
    behind the last window begun: nothing is read twice, and up to a window is left out.

    document_multiple: every document takes a multiple of this many places of a row, the rest of
    them padding. Context parallelism over C devices needs 2 C (`parallel.document_zigzag`).
    """

    rows: Literal["concat", "whole"] = "concat"
    long_documents: Literal["split", "truncate", "error"] = "split"
    shuffle_rows: int = 0
    document_multiple: int = 1

    def __post_init__(self):
        if self.document_multiple < 1:
            raise TextDataError(
                f"document_multiple must be at least 1, got {self.document_multiple}."
            )
        if self.shuffle_rows < 0:
            raise TextDataError(f"shuffle_rows must be 0 or more, got {self.shuffle_rows}.")
        for name, allowed in (
            ("rows", ("concat", "whole")),
            ("long_documents", ("split", "truncate", "error")),
        ):
            if getattr(self, name) not in allowed:
                raise choose_from(name, getattr(self, name), allowed, f"Set {name}.")


class PackedRows(grain.MapDataset):
    """Endless rows of one domain: row number -> dict of int32 [T] arrays (FIELDS) and 'domains'.

    Every document is followed by the end-of-document token. The label of a token is the next
    token of the same document, also where the row ends; NO_LABEL at the end of a document and in
    padding. Segments count from 1 in a row, 0 is padding; positions count from 0 in each segment,
    also in the later pieces of a document that was cut.
    """

    def __init__(self, shards: TextShards, documents: np.ndarray, plan, seq_len: int, domain: int):
        super().__init__()
        self._shards, self._documents, self._plan = shards, documents, plan
        self._seq_len, self._domain = seq_len, domain

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        return self._fill(self._plan.row(int(index)))

    def _fill(self, pieces: Pieces) -> dict[str, np.ndarray]:
        row = {name: np.zeros(self._seq_len, np.int32) for name in FIELDS}
        row["labels"][:] = NO_LABEL
        records = self._shards.records(self._documents[pieces.document])
        at = 0
        spans = zip(records, pieces.start.tolist(), pieces.stop.tolist(), strict=True)
        for segment, (record, start, stop) in enumerate(spans, 1):
            # Two tokens more than the piece: end of document, and no label behind it. The plan may
            # reserve more places than the document has tokens (document_multiple).
            text = np.append(record.tokens[start : stop + 1], [self._shards.eod_id, NO_LABEL])
            size = min(stop, len(record.tokens) + 1) - start
            here = slice(at, at + size)
            row["tokens"][here] = text[:size]
            row["labels"][here] = text[1 : size + 1]
            row["segment_ids"][here] = segment
            row["positions"][here] = np.arange(size)
            at += stop - start
        row["domains"] = np.int32(self._domain)
        return row


def text_batches(
    shards: TextShards,
    mixture: Mixture,
    *,
    seq_len: int,
    batch_rows: int,
    seed: int = 0,
    packing: PackingConfig | None = None,
    start: Mapping[str, int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    dispatch: int = 1,
    num_threads: int = 0,
) -> grain.IterDataset:
    """Endless batches of one phase of training.

    Every row holds documents of one domain; rows of the domains are interleaved by the mixture's
    weights, which are therefore shares of tokens. A global batch depends on nothing but the
    arguments up to `start`; process i of n makes rows [i R/n, (i+1) R/n) of it and reads no other
    documents. The place in the stream is one number, so that resumption is exact and immediate.

    Args:
      seq_len: T.
      batch_rows: R, rows of the global batch.
      start: tokens of each domain that earlier phases have read (`consumed_tokens` counts them),
        so that the next phase goes on there; only with packing.rows='concat'. Phases must share
        seed, shards and the mixture's settings other than weights, or the streams differ.
      dispatch: K > 1 stacks K batches to [K, R, T]; 1 gives [R, T].
      num_threads: threads of grain that read ahead; 0 leaves that to the training loop.

    Returns:
      grain.IterDataset of {'tokens', 'labels', 'segment_ids', 'positions': int32 [R/n, T],
      'domains': int32 [R/n], counts into shards.domains}; iterators have exact get_state and
      set_state.

    Raises:
      TextDataError: a domain that the shards lack or that has no documents, sizes below one,
        rows that process_count does not divide, a document longer than a row under
        long_documents='error', start with packing that cannot use it.
    """
    packing, start = packing or PackingConfig(), dict(start or {})
    for name, value in (("seq_len", seq_len), ("batch_rows", batch_rows), ("dispatch", dispatch)):
        if value < 1:
            raise TextDataError(f"{name} must be at least 1, got {value}.")
    if not 0 <= process_index < process_count:
        raise TextDataError(f"process_index {process_index} is not in 0..{process_count - 1}.")
    if batch_rows % process_count:
        raise TextDataError(
            f"A batch of {batch_rows} rows cannot be divided among {process_count} processes; "
            "make batch_rows a multiple of it."
        )
    names = [domain for domain, weight in mixture.weights.items() if weight > 0]
    for domain, tokens in start.items():
        if domain not in shards.domains:
            raise choose_from("domain in start", domain, shards.domains, "Change start.")
        if tokens < 0:
            raise TextDataError(f"start[{domain!r}] must be at least 0, got {tokens}.")
    if start and packing.rows != "concat":
        raise TextDataError("start counts tokens of a stream, which only rows='concat' has.")
    rows = [
        _domain_rows(shards, mixture, domain, seq_len, seed, packing, start.get(domain, 0))
        for domain in names
    ]
    schedule = RowSchedule([mixture.weights[d] for d in names], _ENDLESS)
    mixed = grain.MapDataset.select_from_datasets(rows, schedule)
    per_process = batch_rows // process_count
    dataset = mixed.batch(per_process)[process_index::process_count]
    if dispatch > 1:
        dataset = dataset.batch(dispatch)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=2 * num_threads if num_threads else 0
    )
    return dataset.to_iter_dataset(options)


def consumed_tokens(
    mixture: Mixture, *, seq_len: int, batch_rows: int, num_batches: int,
    start: Mapping[str, int] | None = None, shuffle_rows: int = 0,
) -> dict[str, int]:  # fmt: skip
    """Tokens of each domain's stream behind the first batches of a phase (rows='concat').

    Args:
      start: what the phase itself began with.
      shuffle_rows: of its PackingConfig; counts go up to the end of the last window begun.
    """
    window = max(shuffle_rows, 1)
    names = [domain for domain, weight in mixture.weights.items() if weight > 0]
    schedule = RowSchedule([mixture.weights[d] for d in names], _ENDLESS)
    counts = schedule.rows_before(batch_rows * num_batches)
    after = dict(start or {})
    for domain, count in zip(names, counts.tolist(), strict=True):
        after[domain] = after.get(domain, 0) + -(-count // window) * window * seq_len
    return after


def _domain_rows(
    shards: TextShards, mixture: Mixture, domain: str, seq_len: int, seed: int,
    packing: PackingConfig, start: int,
) -> PackedRows:  # fmt: skip
    documents = shards.documents_of(domain)
    if not len(documents):
        raise TextDataError(
            f"The shards hold no documents of domain {domain!r}; leave it out of the mixture "
            "(Mixture.restricted_to) or add some."
        )
    documents = documents[
        selected_documents(shards.index["difficulty"][documents], mixture, domain)
    ]
    table = shards.index[documents]
    sizes = table["length"].astype(np.int64) + 1
    longest = int(sizes.argmax())
    if sizes[longest] > seq_len:
        if packing.long_documents == "error":
            name = shards.records([documents[longest]])[0].name
            raise TextDataError(
                f"Document {name!r} of domain {domain!r} has {sizes[longest]} tokens with its end, "
                f"more than seq_len={seq_len}; raise it, or set long_documents to 'split' or "
                "'truncate'."
            )
        if packing.long_documents == "truncate":
            sizes = np.minimum(sizes, seq_len)
    multiple = packing.document_multiple
    if seq_len % multiple or start % multiple:
        raise TextDataError(
            f"seq_len={seq_len} and start={start} must be multiples of "
            f"document_multiple={multiple}; change seq_len, or keep one multiple for all phases."
        )
    sizes = -(-sizes // multiple) * multiple
    quality, difficulty = table["quality"], table["difficulty"]

    def order(epoch: int) -> np.ndarray:
        return epoch_order(quality, difficulty, mixture, domain, seed, epoch)

    if packing.rows == "concat":
        plan = ConcatRows(sizes, seq_len, order, start)
    else:
        plan = WholeRows(sizes, seq_len, order)
    if packing.shuffle_rows:
        key = (seed, zlib.crc32(domain.encode()))
        plan = ShuffledRows(plan, packing.shuffle_rows, key)
    return PackedRows(shards, documents, plan, seq_len, shards.domains.index(domain))
