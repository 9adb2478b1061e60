"""The edit that follows the importances: ``python -m tests.benchmarks.fisher.update``, the same as ``….edit``."""

from tests.benchmarks.edit import main

if __name__ == "__main__":
    main()
