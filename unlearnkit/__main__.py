"""``python -m unlearnkit``: the same as the command ``unlearnkit``."""

from unlearnkit.cli.app import main

if __name__ == "__main__":
    main()
