"""Kernels of the ground floor, and the rule that picks an implementation."""
