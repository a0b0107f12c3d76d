"""`step` and `catch_error`, which are defined in `steps`: many programs import them from here."""

from .steps import catch_error, step

__all__ = ["catch_error", "step"]
