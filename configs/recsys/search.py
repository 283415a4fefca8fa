"""Tuning with equal effort: the same grid of learning rates and dropouts for every model.

    python launch.py --config=configs/recsys/search.py:fuxi_alpha --workdir=runs/search-fuxi_alpha

One variant per model, MovieLens-100K, seed 0. Read `validation NDCG@10` in the report and
take the best row; the test values stand beside it, but choosing by them would be looking at the
answer. compare.py runs the winners with several seeds.
"""

from configs.recsys import _base as base
from configs.recsys._models import ML100K_DIM, entry

GRID = [(rate, dropout) for rate in (3e-3, 6e-3) for dropout in (0.2, 0.4)]
# Minutes (estimated from single runs) and the best validation NDCG@10 of the four (measured).
COSTS = {
    "fuxi_alpha": ("14 min", ".1145"),
    "hstu": ("9 min", ".1096"),
    "sasrec": ("12 min", ".1147"),
    "gru4rec": ("4 min", ".1085"),
}

VARIANTS = {
    name: base.Variant(
        f"{name}: 2 learning rates x 2 dropouts",
        f"{time} (estimated)",
        f"best validation NDCG@10 {best}",
    )
    for name, (time, best) in COSTS.items()
} | {"debug": base.Variant("two settings of a tiny model", "under 1 min", "runs through")}


def _grid(name, dim, grid):
    """Label -> entry; a label names the setting: learning rate in 1e-4, dropout in percent."""
    return {
        f"{name}_lr{round(rate * 1e4)}_dropout{round(dropout * 100)}": entry(
            name, dim, learning_rate=rate, dropout_rate=dropout
        )
        for rate, dropout in grid
    }


def get_config(variant: str = "fuxi_alpha"):
    if variant == "debug":
        return base.debug(_grid("sasrec", 16, GRID[:2]))
    if variant not in COSTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = base.ml100k(_grid(variant, ML100K_DIM, GRID))
    config.evaluation.resamples = 200
    return config
