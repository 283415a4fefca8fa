"""Rematerialisation of a block by policy name: what the backward pass may keep."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from pangu_jax.kernels.segment_attention.reference import ATTENTION_RESIDUALS

# The name of what blocks get from their weight products. By name, because JAX's own policy for
# products does not see those inside functions with a gradient of their own.
WEIGHT_PRODUCTS = "weight_products"

# 'nothing' recomputes the whole block; 'attention' keeps attention's result (of implementations
# that name it: 'xla' and the Pallas ones); 'dots' keeps the results of weight products, so that
# attention and elementwise work alone are done twice; 'products' keeps both, which leaves norms,
# rotations and activations.
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENTION_RESIDUALS),
    "dots": jax.checkpoint_policies.save_only_these_names(WEIGHT_PRODUCTS),
    "products": jax.checkpoint_policies.save_only_these_names(ATTENTION_RESIDUALS, WEIGHT_PRODUCTS),
}


def remat_block(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """`block` itself for policy 'none', else the block rematerialised by that policy.

    Meant for blocks under `nn.scan`, where common-subexpression elimination cannot undo the
    recomputation.

    Raises:
      ValueError: for an unknown policy, naming the allowed ones.
    """
    check_policy(policy)
    if policy == "none":
        return block
    return nn.remat(block, policy=REMAT_POLICIES[policy], prevent_cse=False)


def checkpointed(function: Callable, policy: str) -> Callable:
    """`function` itself for policy 'none', else rematerialised; for use under `jax.lax.scan`.

    Raises:
      ValueError: for an unknown policy.
    """
    check_policy(policy)
    if policy == "none":
        return function
    return jax.checkpoint(function, policy=REMAT_POLICIES[policy], prevent_cse=False)


def check_policy(policy: str) -> None:
    """Raises ValueError naming the field and the allowed names."""
    if policy != "none" and policy not in REMAT_POLICIES:
        raise ValueError(
            f"remat={policy!r} is not a policy; allowed: none, {', '.join(REMAT_POLICIES)}"
        )
