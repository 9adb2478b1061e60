"""The commands of ``unlearnkit``, which `unlearnkit.cli.app` puts together.

Commands import what they need when they are called: importing torch takes seconds, and ``--help`` must not wait for it.
"""
