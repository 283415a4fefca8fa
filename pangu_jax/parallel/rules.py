"""Logical axis rules of a layout on the automatic path, and ZeRO's extra sharding over data.

The automatic path leaves the division of a program to XLA (GSPMD): data, context and tensor
parallelism and ZeRO work there, a pipeline does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jax.sharding import Mesh, PartitionSpec

from pangu_jax.parallel.layout import Layout, LayoutError
from pangu_jax.parallel.sharding import Rules


def rules_for(layout: Layout) -> Rules:
    """What the logical axis names of models mean on `layout_mesh(layout)`.

    Rows go over data; heads, MLP columns and vocabulary over tensor; positions over context, and
    those of the residual stream also over tensor under sequence parallelism. With zero=3 the
    hidden width of weights goes over data. (Gradients and optimizer state: `zero_sharding`.)

    Attention under context > 1 gathers keys and values, as XLA sees fit; rings are the business
    of the manual path.

    Raises:
      LayoutError: the layout has a pipeline.
    """
    if layout.pipe > 1:
        raise LayoutError(
            f"layout.pipe={layout.pipe}: the automatic path has no pipeline; set pipe to 1 and "
            "give its devices to data (with layout.zero=3 they share the parameters)."
        )
    residual = ("context", "tensor") if layout.sequence_parallel else "context"
    return (
        ("batch", "data"),
        ("items", "tensor"),
        ("vocab", "tensor"),
        ("heads", "tensor"),
        ("kv_heads", "tensor"),
        ("mlp", "tensor"),
        ("sequence", "context"),
        ("residual_sequence", residual),
        ("embed", "data" if layout.zero == 3 else None),
        ("head_dim", None),
        ("norm", None),
        ("layers", None),
    )


def zero_sharding(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | Mapping[str, int], axis: str = "data"
) -> PartitionSpec:
    """The spec with `axis` on the first dimension that is free and that it divides.

    Args:
      spec: of a parameter; shorter than `shape` where the last dimensions are whole.
      shape: of the parameter, over all devices.
      mesh: a mesh, or its axis sizes.

    Returns:
      The spec itself where it already uses `axis`, where `axis` has size 1, and where no free
      dimension can be divided (small vectors: every device keeps them whole).

    Source: ZeRO (arXiv 1910.02054), stages 1 and 2 for optimizer state and gradients.
    """
    sizes = getattr(mesh, "shape", mesh)
    entries = list(spec) + [None] * (len(shape) - len(spec))
    if axis in _axes(spec) or sizes[axis] == 1:
        return spec
    for dim, (entry, length) in enumerate(zip(entries, shape, strict=True)):
        if entry is None and length and length % sizes[axis] == 0:
            return PartitionSpec(*entries[:dim], axis, *entries[dim + 1 :])
    return spec


def shards(spec: PartitionSpec, mesh: Mesh | Mapping[str, int]) -> int:
    """Into how many different parts a spec divides an array."""
    sizes = getattr(mesh, "shape", mesh)
    return math.prod(sizes[name] for name in _axes(spec))


def _axes(spec: PartitionSpec) -> list[str]:
    return [
        name
        for entry in spec
        if entry is not None
        for name in ((entry,) if isinstance(entry, str) else entry)
    ]
