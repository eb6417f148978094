"""python -m sglang: the `sglang` command."""

import sys

from sglang.cli import main

if __name__ == "__main__":
    sys.exit(main())
