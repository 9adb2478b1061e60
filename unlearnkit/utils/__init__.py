"""Helpers that know nothing of unlearning: errors, options, files, random numbers, progress."""

from unlearnkit.utils.options import Option, option, options_of
from unlearnkit.utils.progress import Progress

__all__ = ["Option", "Progress", "option", "options_of"]
