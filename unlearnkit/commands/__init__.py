"""The commands of ``unlearnkit``, one file each; `unlearnkit.cli` puts them together."""
