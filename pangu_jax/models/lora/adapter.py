"""A named adapter: its parameters, how they start, and the base that it belongs to.

Letters: L layers, r rank, I... inputs and O... outputs of a weight in its own axes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.lora.config import LoraConfig, LoraError
from pangu_jax.models.lora.targets import TargetSpec, get_target, set_target, target_specs

# Rows of the embedding that a fingerprint reads at most: enough to tell models apart.
_FINGERPRINT_ROWS = 1024


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """Parameters under a name; a pytree whose leaves are the parameters.

    params: {'layers': {'attn': {'q': {'a': (L, I..., r), 'b': (L, r, O...)}, ...}, 'mlp': ...}}.
    base_fingerprint: of the base that it was trained on (`fingerprint`), None where unknown.
    base_name: of that base, for people and for other programs.
    """

    name: str = dataclasses.field(metadata={"static": True})
    config: LoraConfig = dataclasses.field(metadata={"static": True})
    params: Any
    base_fingerprint: str | None = dataclasses.field(default=None, metadata={"static": True})
    base_name: str | None = dataclasses.field(default=None, metadata={"static": True})


def init_lora(config: DecoderConfig, lora: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """Parameters of a new adapter, float32; the model starts as the base exactly, since B is 0.

    A is uniform in +-1 / sqrt(inputs), the default of the `peft` library (Kaiming uniform with
    a = sqrt(5)); Hu et al. say Gaussian and give no deviation.

    Args:
      config: of the base. lora: of the adapter. key: of the draw of A.
    """
    params: dict[str, Any] = {}
    specs = target_specs(config)
    for name in lora.targets:
        spec = specs[name]
        # By name, not by order: a target draws the same whatever other targets there are.
        own = jax.random.fold_in(key, list(specs).index(name))
        bound = 1 / math.sqrt(spec.fan_in)
        a_shape, b_shape = shapes_of(spec, lora.rank, config.num_layers)
        a = jax.random.uniform(own, a_shape, jnp.float32, -bound, bound)
        set_target(params, name, {"a": a, "b": jnp.zeros(b_shape, jnp.float32)})
    return params


def shapes_of(spec: TargetSpec, rank: int, layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of A (L, I..., r) and B (L, r, O...)."""
    return (layers, *spec.inputs, rank), (layers, rank, *spec.outputs)


def check_adapter(
    adapter: Adapter, config: DecoderConfig, base_fingerprint: str | None = None
) -> None:
    """Does the adapter belong to this base?

    Args:
      config: of the base. base_fingerprint: of the base; compared where both sides have one.

    Raises:
      LoraError: another fingerprint, parameters missing, unknown or of another shape.
    """
    known = adapter.base_fingerprint
    if known is not None and base_fingerprint is not None and known != base_fingerprint:
        of = f" ({adapter.base_name})" if adapter.base_name else ""
        raise LoraError(
            f"Adapter {adapter.name!r} was trained on the base {known}{of}, this model is "
            f"{base_fingerprint}: load the adapter's own base, or train one for this model."
        )
    specs = target_specs(config)
    for name in adapter.config.targets:
        want = shapes_of(specs[name], adapter.config.rank, config.num_layers)
        held = get_target(adapter.params, name) or {}
        for leaf, shape in zip("ab", want, strict=True):
            found = tuple(nn.unbox(held[leaf]).shape) if leaf in held else None
            if found != shape:
                raise LoraError(
                    f"Adapter {adapter.name!r}: {'/'.join((*specs[name].path, leaf))} is "
                    f"{'missing' if found is None else f'{list(found)}'}; this base with rank "
                    f"{adapter.config.rank} needs {list(shape)}. The adapter belongs to another "
                    "base, or its rank is another."
                )
    wanted = 2 * len(adapter.config.targets)
    found = len(jax.tree.leaves(adapter.params))
    if found != wanted:
        raise LoraError(
            f"Adapter {adapter.name!r} holds {found} arrays; its targets "
            f"{', '.join(adapter.config.targets)} make {wanted} (A and B of each)."
        )


def fingerprint(config: DecoderConfig, params: Mapping[str, Any]) -> str:
    """A short name of a base made from its sizes and contents, the same for float32 and bfloat16.

    SHA-256 over the sizes that shape parameters, all norms' gains, and up to 1,024 evenly spaced
    rows of the embedding, values rounded to bfloat16. Weight matrices are not read, so that a
    model whose kernels were turned into int8 keeps its name; two models that differ in nothing
    else share it.
    """
    sizes = {
        field: getattr(config, field)
        for field in (
            "vocab_size", "num_layers", "hidden_dim", "mlp_dim", "num_heads", "num_kv_heads",
            "head_dim", "qkv_bias", "out_bias", "qk_norm", "tie_embeddings", "has_post_norms",
        )
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    params = nn.unbox(params)
    table = params["embed"]["embedding"]
    step = -(-table.shape[0] // _FINGERPRINT_ROWS)
    read = {"embed/embedding": table[::step]}
    flat = jax.tree_util.tree_flatten_with_path({k: v for k, v in params.items() if k != "embed"})
    for path, value in flat[0]:
        keys = [getattr(key, "key", None) for key in path]
        if keys[-1] == "scale" and keys[-2] is not None and str(keys[-2]).endswith("norm"):
            read["/".join(map(str, keys))] = value
    for name in sorted(read):
        values = np.asarray(jnp.asarray(read[name]).astype(jnp.bfloat16))
        digest.update(f"{name}{values.shape}".encode() + values.tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"
