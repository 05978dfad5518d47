"""`slam` with every network socket refused, as the tests start it in a process of its own."""

import sys

from pytest_socket import disable_socket

from slam.cli import main

if __name__ == "__main__":  # worker processes import this file anew
    disable_socket(allow_unix_socket=True)
    main(sys.argv[1:])
