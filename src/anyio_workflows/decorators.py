"""`step` and `catch_error`, which are defined in `steps`: many programs import them from here."""

from typing import TYPE_CHECKING

from ._absent import absent_names
from .steps import catch_error, step

__all__ = ["catch_error", "step"]

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)
