"""Typed configuration: nested mappings in, frozen dataclasses out."""

from pangu_jax.config.resolve import ConfigError, differing_keys, flatten, resolve, to_dict

__all__ = ["ConfigError", "differing_keys", "flatten", "resolve", "to_dict"]
