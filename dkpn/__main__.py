"""``python -m dkpn``: the command line, where its script is not on the path."""

import sys

from dkpn.cli import entry_point

if __name__ == "__main__":
    sys.exit(entry_point())
