"""Training states whose arrays stand in an order of their own, divided by hand over the mesh.

Where XLA divides a step by itself, parameters keep the model's shapes and logical axis names say
where they go. A program divided by hand may want them in another order (layers by pipeline stage,
a vocabulary rounded up). The loop then works on that order, while checkpoints and evaluation see
the model's own, so that any layout can continue what another one began.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from pangu_jax.parallel.sharding import replicated
from pangu_jax.training.state import LossSums, TrainState


class Division(Protocol):
    """A step divided by hand. Trees of parameters, and of shardings of the same structure."""

    mesh: Mesh

    def loss_and_grad(self, params: Any, batch: Any) -> tuple[LossSums, Any]:
        """Sums over the batch and the gradient of total / weight, for arranged parameters."""

    def arrange(self, params: Any) -> Any:
        """The model's parameters (or anything of their shapes) in the program's order."""

    def restore_order(self, params: Any) -> Any:
        """The inverse of `arrange`."""

    def param_shardings(self) -> Any:
        """Of arranged parameters."""

    def moment_shardings(self) -> Any:
        """Of arranged optimizer moments (and gradients)."""

    def stored_shardings(self) -> Any:
        """Of parameters and moments in the model's own order."""


class DividedState:
    """A `TrainState` in a division's order and in the model's own.

    Args:
      division: the program.
      state: of abstract arrays, in the model's own order, without boxes.
    """

    def __init__(self, division: Division, state: TrainState):
        self._division = division
        self._structure = jax.tree.structure(state.params)
        self.shardings = self._shardings(
            state, division.param_shardings(), division.moment_shardings()
        )
        stored = division.stored_shardings()
        self._stored = self._shardings(state, stored, stored)
        self.abstract_stored = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, self._stored
        )
        self.arrange_placed = jax.jit(self.arrange, out_shardings=self.shardings)
        self.restore_order = jax.jit(
            lambda state: self._map(division.restore_order, state), out_shardings=self._stored
        )
        self.restore_params = jax.jit(division.restore_order, out_shardings=stored)

    def arrange(self, state: TrainState) -> TrainState:
        """The state in the division's order."""
        return self._map(self._division.arrange, state)

    def place(self, state: TrainState) -> TrainState:
        """The arranged state, constrained to `shardings`; for use inside a jitted step."""
        return jax.lax.with_sharding_constraint(state, self.shardings)

    def _map(self, function: Callable[[Any], Any], state: TrainState) -> TrainState:
        """`function` of the parameters and of every part of the optimizer state like them."""
        return jax.tree.map(
            lambda x: function(x) if self._is_params(x) else x, state, is_leaf=self._is_params
        )

    def _is_params(self, x) -> bool:
        return jax.tree.structure(x) == self._structure

    def _shardings(self, state, of_params, of_moments):
        fixed = replicated(self._division.mesh)
        moments = jax.tree.map(
            lambda x: of_moments if self._is_params(x) else fixed,
            state.opt_state,
            is_leaf=self._is_params,
        )
        return TrainState(step=fixed, params=of_params, opt_state=moments, rng=fixed)
