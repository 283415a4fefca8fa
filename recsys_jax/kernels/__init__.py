"""Kernels of the recommenders, one folder per operation."""
