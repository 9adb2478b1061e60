"""``python -m tests.benchmarks.fisher``."""

from tests.benchmarks.fisher import main

if __name__ == "__main__":
    main()
