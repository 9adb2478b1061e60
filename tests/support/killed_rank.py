"""The command; one rank is killed after it has written its n-th checkpoint.

Called as ``killed_rank.py RANK N ARGUMENTS…`` under torchrun.
"""

import os
import signal
import sys

from unlearnkit.cli.app import app


def main():
    rank, left = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]

    def watch(event, arguments):
        nonlocal left
        if event == "os.rename" and str(arguments[1]).endswith(".part"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == rank:
        sys.addaudithook(watch)
    app()


main()
