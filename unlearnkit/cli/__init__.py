"""The commands of ``unlearnkit``, one file each; `unlearnkit.cli.app` puts them together."""
