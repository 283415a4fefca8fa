"""The models by name, behind one interface: init, loss, encode, item_table.

Every model ranks by the dot product of a user vector and an item vector, so that evaluation,
prediction and sharded top-k are written once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.training.state import LossSums
from recsys_jax.sequential import bpr_mf, layers, losses
from recsys_jax.sequential.fuxi_alpha import FuXiAlpha, FuXiAlphaConfig
from recsys_jax.sequential.gru4rec import GRU4Rec, GRU4RecConfig
from recsys_jax.sequential.hstu import HSTU, HSTUConfig
from recsys_jax.sequential.llama import Llama, LlamaConfig
from recsys_jax.sequential.most_popular import MostPopularConfig
from recsys_jax.sequential.narm import NARM, NARMConfig
from recsys_jax.sequential.sasrec import SASRec, SASRecConfig


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model that a config may name: its config class, its module and what it trains on."""

    config_class: type
    module: Callable[..., nn.Module] | None
    trains_on: str  # sequences | pairs | counts
    sees_request_time: bool = False  # the target's timestamp enters the user vector (spec 6.2)


MODELS: dict[str, ModelSpec] = {
    "fuxi_alpha": ModelSpec(FuXiAlphaConfig, FuXiAlpha, "sequences", True),
    "hstu": ModelSpec(HSTUConfig, HSTU, "sequences", True),
    "sasrec": ModelSpec(SASRecConfig, SASRec, "sequences"),
    "llama": ModelSpec(LlamaConfig, Llama, "sequences"),
    "gru4rec": ModelSpec(GRU4RecConfig, GRU4Rec, "sequences"),
    "narm": ModelSpec(NARMConfig, NARM, "sequences"),
    "bpr_mf": ModelSpec(bpr_mf.BPRMFConfig, bpr_mf.BPRMF, "pairs"),
    "most_popular": ModelSpec(MostPopularConfig, None, "counts"),
}


def model_spec(name: str) -> ModelSpec:
    """The model called `name`; ValueError with a suggestion when there is none."""
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, 1, 0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown model {name!r}{hint} Known models: {', '.join(MODELS)}")


@dataclasses.dataclass(frozen=True)
class SequenceModel:
    """A model trained on sequences (batch dict of `recsys_jax.data.batches`)."""

    spec: ModelSpec
    config: Any
    loss_config: losses.LossConfig
    num_items: int
    rows: int
    packed: bool = False
    item_probabilities: Any = None  # (num_items,) for popularity-distributed negatives

    @property
    def module(self) -> nn.Module:
        return self.spec.module(self.config, self.rows)

    def init(self, rng: jax.Array, batch: dict[str, jax.Array]) -> Any:
        """Parameters (boxed with logical axes) for batches like `batch`."""
        return self.module.init(rng, batch)["params"]

    def loss(self, params, batch, rng) -> LossSums:
        """Sum of the losses and number of labels of a training batch."""
        dropout_rng, negatives_rng = jax.random.split(rng)
        users = self.module.apply(
            {"params": params},
            batch,
            deterministic=False,
            packed=self.packed,
            rngs={"dropout": dropout_rng},
        )
        total, weight = losses.catalogue_loss(
            users,
            layers.item_table(params),
            batch["labels"],
            negatives_rng,
            self.loss_config,
            self.num_items,
            self.item_probabilities,
        )
        return LossSums(total, weight)

    def encode(self, params, batch) -> jax.Array:
        """User vectors after each event (R, N, D), without dropout; rows are padded, not packed."""
        return self.module.apply({"params": params}, batch, deterministic=True, packed=False)

    def item_table(self, params) -> jax.Array:
        """Item vectors (rows, D) as they are scored."""
        return losses.scoring_table(layers.item_table(params), self.loss_config.item_l2_norm)


@dataclasses.dataclass(frozen=True)
class PairwiseModel:
    """BPR-MF: trained on (user, positive, negative); knows only the users of the training log."""

    config: bpr_mf.BPRMFConfig
    num_items: int
    num_users: int
    rows: int

    @property
    def module(self) -> nn.Module:
        return bpr_mf.BPRMF(self.config, self.rows, self.num_users)

    def init(self, rng, batch):
        return self.module.init(rng, batch["users"])["params"]

    def loss(self, params, batch, rng):
        total, weight = bpr_mf.pairwise_loss(params, batch, self.config)
        return LossSums(total, weight)

    def encode(self, params, batch):
        """(R, N, D + 1): the same vector in every column."""
        users = jnp.maximum(batch["users"], 0)
        vectors = self.module.apply({"params": params}, users)
        rows, n = batch["items"].shape
        return jnp.broadcast_to(vectors[:, None], (rows, n, vectors.shape[-1]))

    def item_table(self, params):
        return bpr_mf.biased_item_table(params)


@dataclasses.dataclass(frozen=True)
class PopularityModel:
    """Most popular: `params` is the table itself, nothing is trained."""

    config: MostPopularConfig
    num_items: int

    def encode(self, params, batch):
        return jnp.ones((*batch["items"].shape, 1), jnp.float32)

    def item_table(self, params):
        return params["table"]


def build_model(
    name: str,
    config: Any,
    loss_config: losses.LossConfig,
    *,
    num_items: int,
    num_users: int,
    packed: bool = False,
    row_multiple: int = 1,
    item_probabilities=None,
) -> SequenceModel | PairwiseModel | PopularityModel:
    """The model `name` with its config; `row_multiple` rounds the item table up for sharding."""
    spec = model_spec(name)
    rows = -(-(num_items + 1) // row_multiple) * row_multiple
    if spec.trains_on == "counts":
        return PopularityModel(config, num_items)
    if spec.trains_on == "pairs":
        return PairwiseModel(config, num_items, num_users, rows)
    return SequenceModel(spec, config, loss_config, num_items, rows, packed, item_probabilities)
