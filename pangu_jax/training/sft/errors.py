"""The one error of this folder."""


class FineTuneError(ValueError):
    """Examples or settings that a model cannot be tuned with; the text says what to change."""
