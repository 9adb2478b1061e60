"""``python -m unlearnkit.testing`` prints the reference page of the laws."""

import sys

from unlearnkit.testing.page import laws_page

if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(laws_page())
