"""Importances on disk, by group: measured once, then reduced with every request to forget."""
