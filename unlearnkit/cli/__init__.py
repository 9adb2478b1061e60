"""The commands of ``unlearnkit``, one file each; `unlearnkit.cli.app` puts them together.

Commands import what they need when they are called: importing torch takes seconds, and ``--help`` must not wait for it.
"""
