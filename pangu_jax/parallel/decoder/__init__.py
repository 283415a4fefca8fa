"""The decoder's training step divided by hand: pipeline, tensor, sequence, context, data, ZeRO."""

from pangu_jax.parallel.decoder.program import DecoderProgram
from pangu_jax.parallel.decoder.stages import StageLayout

__all__ = ["DecoderProgram", "StageLayout"]
