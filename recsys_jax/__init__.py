"""Recommenders and knowledge tracing on top of pangu_jax."""
