"""``python -m unlearnkit``, and what the command ``unlearnkit`` starts."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line from the first moment on, also while modules are imported."""
    try:
        from unlearnkit.cli.app import app  # noqa: PLC0415 - inside the try

        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was left half-written\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
