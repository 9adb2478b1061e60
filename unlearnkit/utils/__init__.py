"""Helpers that know nothing of unlearning: errors, options, files, random numbers, progress."""
