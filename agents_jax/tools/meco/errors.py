"""Errors of MeCo."""

from __future__ import annotations


class MecoError(ValueError):
    """Something a user can change: data, a configuration, a probe; the text says what."""


class ProbeMismatch(MecoError):
    """A saved probe and a model that is not the one it was made with."""
