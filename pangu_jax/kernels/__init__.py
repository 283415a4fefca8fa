"""Kernels of the ground floor: one folder per operation, and the rule that picks an implementation."""
