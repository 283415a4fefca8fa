"""Tools that really do something, for demonstrations and tests of agents on one's own machine."""

from agents_jax.tools.local_tools.default import default_registry

__all__ = ["default_registry"]
