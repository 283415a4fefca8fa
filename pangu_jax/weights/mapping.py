"""Our parameters and a file's tensors, one list for both directions.

Letters: V vocabulary, L layers, D hidden width, F MLP width, N query heads, K key-value heads,
H head width.

Files store a projection as (outputs, inputs) with heads and features in one axis; the decoder
stores (inputs..., outputs...). Going from one to the other is always: take axes apart, reorder
them, join them. Import and export read the same entry, so they cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from pangu_jax.models.config import DecoderConfig
from pangu_jax.weights.errors import WeightsError

Path = tuple[str, ...]
_SQUARE = 64


@dataclasses.dataclass(frozen=True)
class MappedTensor:
    """One tensor of a file and the (layer of a) parameter that holds it.

    path: of the parameter in our tree. layer: index on its leading axis, None without one.
    name, shape: in the file. split, order: the file's axes taken apart, then reordered.
    ours: shape of the parameter, without the layer axis.
    """

    path: Path
    layer: int | None
    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    ours: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """File's array -> one layer of our parameter (a view where possible)."""
        return array.reshape(self.split).transpose(self.order).reshape(self.ours)

    def fill(self, out: np.ndarray, array: np.ndarray) -> None:
        """Writes `to_ours(array)` into `out`, contiguous and of the same type, in less time.

        A transposition of a large matrix in one go misses the cache with every element; squares of
        it do not. Elements go over as plain numbers, since NumPy copies its own types faster.
        """
        first_input = self.order[0]
        if array.ndim != 2 or first_input == 0 or out.dtype != array.dtype:
            out[...] = self.to_ours(array)
            return
        # Whole rows into the order of our outputs (the same array without rotary pairs) ...
        rows = array.reshape(*self.split[:first_input], -1)
        rows = rows.transpose(*(axis for axis in self.order if axis < first_input), first_input)
        rows = rows.reshape(array.shape)
        # ... and then inputs first.
        plain = np.dtype(f"u{array.dtype.itemsize}")
        source, target = rows.view(plain), out.reshape(array.shape[::-1]).view(plain)
        for i in range(0, target.shape[0], _SQUARE):
            for j in range(0, target.shape[1], _SQUARE):
                at, to = slice(i, i + _SQUARE), slice(j, j + _SQUARE)
                target[at, to] = source[to, at].T

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Exact inverse of `to_ours`, contiguous."""
        reordered = array.reshape([self.split[axis] for axis in self.order])
        back = reordered.transpose(np.argsort(self.order)).reshape(self.shape)
        return np.ascontiguousarray(back)


def map_tensors(
    config: DecoderConfig, names: Mapping[str, str], *, interleaved: bool = False
) -> list[MappedTensor]:
    """Every tensor of a model of this config, in the order of our parameters.

    Args:
      config: sizes and choices; they decide which parameters there are.
      names: our path ('layers/attn/q/kernel') to the file's name, '{}' for the layer's number.
      interleaved: the file's q and k have rotary pairs at (2i, 2i + 1); ours at (i, i + H/2).

    Raises:
      WeightsError: a parameter for which the format has no name, or a decoder whose own rotary
        layout is not 'half'.
    """
    if config.rope_layout != "half":
        raise WeightsError(
            f"rope_layout={config.rope_layout!r}: weights are read and written for 'half' only."
        )
    tensors = []
    for path, inputs, outputs, rotary in _parameters(config):
        if path not in names:
            raise WeightsError(f"The format has no name for the parameter {path}.")
        pairs = interleaved and rotary
        for layer in range(config.num_layers) if path.startswith("layers/") else (None,):
            name = names[path] if layer is None else names[path].format(layer)
            tensors.append(_mapped(tuple(path.split("/")), layer, name, inputs, outputs, pairs))
    return tensors


def _mapped(path, layer, name, inputs, outputs, pairs) -> MappedTensor:
    if inputs is None:
        return MappedTensor(path, layer, name, outputs, outputs, (0, 1), outputs)
    split = (*outputs[:-1], outputs[-1] // 2, 2) if pairs else outputs
    order = list(range(len(split)))
    if pairs:
        order[-2:] = order[-1], order[-2]
    order = [*(len(split) + axis for axis in range(len(inputs))), *order]
    shape = (math.prod(outputs), *((math.prod(inputs),) if inputs else ()))
    return MappedTensor(
        path, layer, name, shape, (*split, *inputs), tuple(order), (*inputs, *outputs)
    )


def _parameters(cfg: DecoderConfig):
    """(path, input axes, output axes, whether rotary pairs lie in the last output axis)."""
    d, f, h = cfg.hidden_dim, cfg.mlp_dim, cfg.head_dim
    q, kv = (cfg.num_heads, h), (cfg.num_kv_heads, h)
    yield "embed/embedding", None, (cfg.vocab_size, d), False  # axes as in the file
    yield "layers/attn_norm/scale", (), (d,), False
    for name, heads in (("q", q), ("k", kv), ("v", kv)):
        yield f"layers/attn/{name}/kernel", (d,), heads, name != "v"
        if cfg.qkv_bias:
            yield f"layers/attn/{name}/bias", (), heads, name != "v"
    yield "layers/attn/o/kernel", q, (d,), False
    if cfg.out_bias:
        yield "layers/attn/o/bias", (), (d,), False
    if cfg.qk_norm:
        yield "layers/attn/q_norm/scale", (), (h,), True
        yield "layers/attn/k_norm/scale", (), (h,), True
    yield "layers/mlp_norm/scale", (), (d,), False
    if cfg.has_post_norms:
        yield "layers/post_attn_norm/scale", (), (d,), False
        yield "layers/post_mlp_norm/scale", (), (d,), False
    yield "layers/mlp/gate/kernel", (d,), (f,), False
    yield "layers/mlp/up/kernel", (d,), (f,), False
    yield "layers/mlp/down/kernel", (f,), (d,), False
    yield "final_norm/scale", (), (d,), False
    if not cfg.tie_embeddings:
        yield "head/kernel", (d,), (cfg.vocab_size,), False


def check_inventory(
    found: Mapping[str, Sequence[int]],
    tensors: Sequence[MappedTensor],
    source: str,
    *,
    ignored: Sequence[str] = (),
) -> None:
    """Compares a file's tensor names and shapes with what the model needs, before any is read.

    Raises:
      WeightsError: a tensor missing, of another shape, or one that the model has no place for.
    """
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise WeightsError(
            f"{source} lacks {_several(missing)}, which its configuration asks for: the file is "
            "incomplete or its configuration belongs to another model."
        )
    for name, shape in wanted.items():
        if tuple(found[name]) != shape:
            raise WeightsError(
                f"{source}: tensor {name} has shape {list(found[name])}; {list(shape)} is needed "
                "by the file's own configuration."
            )
    extra = [
        name
        for name in found
        if name not in wanted and not any(name.endswith(end) for end in ignored)
    ]
    if extra:
        raise WeightsError(
            f"{source} holds {_several(extra)}, for which this decoder has no parameter; leaving "
            "it out would change the model."
        )


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more}"
