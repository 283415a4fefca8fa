"""How each phase of a run is divided over the devices, and what that asks of its batches."""

from __future__ import annotations

import dataclasses
import math

import grain
from jax.sharding import Mesh

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.document_zigzag import zigzag
from pangu_jax.parallel.layout import Layout, LayoutError, check_layout, layout_mesh
from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.training.phases import Phase

_ONE_DEVICE = Layout()


def phase_layout(config: PretrainConfig, phase: Phase) -> Layout | None:
    """The layout of a phase, with as many micro-batches as its rows need; None: data parallel only.

    Raises:
      LayoutError: a layout that does not fit the phase's rows or the model.
    """
    layout = config.phase_layouts.get(phase.name, config.layout)
    if layout == _ONE_DEVICE:
        return None
    visit = layout.data * layout.microbatch_rows
    if phase.batch_rows % visit:
        raise LayoutError(
            f"Phase {phase.name!r} has {phase.batch_rows} rows, which layout.data={layout.data} x "
            f"layout.microbatch_rows={layout.microbatch_rows} does not divide; change one of them, "
            f"or give the phase a layout of its own (--config.phase_layouts)."
        )
    layout = dataclasses.replace(layout, microbatches=phase.batch_rows // visit)
    check_layout(layout, config.model, seq_len=phase.seq_len, batch_rows=phase.batch_rows)
    return layout


def check_phase_layouts(config: PretrainConfig, phases: tuple[Phase, ...]) -> None:
    """Checks every phase before the first one starts.

    Raises:
      LayoutError: names the phase, or a name in phase_layouts that is none.
    """
    names = [phase.name for phase in phases]
    for name in config.phase_layouts:
        if name not in names:
            raise LayoutError(f"phase_layouts has {name!r}; the phases are {', '.join(names)}.")
    for phase in phases:
        phase_layout(config, phase)


def divided(
    config: PretrainConfig, phase: Phase, model: DecoderConfig
) -> tuple[Mesh, DecoderProgram | None]:
    """(mesh of a phase, its step divided by hand or None)."""
    layout = phase_layout(config, phase)
    if layout is None:
        return make_mesh(config.train.mesh), None
    mesh = layout_mesh(layout)
    return mesh, DecoderProgram(model, layout, mesh, z_loss=config.z_loss)


def document_multiple(config: PretrainConfig) -> int:
    """What documents are padded to a multiple of: one number for all phases, because the place in
    the stream of text counts the padding."""
    layouts = (config.layout, *config.phase_layouts.values())
    chunks = (2 * layout.context for layout in layouts if layout.context > 1)
    return math.lcm(config.packing.document_multiple, *chunks)


def over_context(batches: grain.IterDataset, layout: Layout | None) -> grain.IterDataset:
    """Batches whose rows stand in the order of the context ranks."""
    if layout is None or layout.context == 1:
        return batches
    return batches.map(lambda batch: zigzag(batch, layout.context))
