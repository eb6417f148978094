"""python -m sglang.launch_server: serve a model over HTTP."""

import argparse
import sys
from collections.abc import Sequence

from sglang.base.config import add_flags, from_args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve a model over HTTP: /generate and the OpenAI API. Without --model-path, the demo model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_flags(parser)
    config = from_args(parser.parse_args(argv))
    from sglang.launch import launch_server

    return launch_server(config)


if __name__ == "__main__":
    sys.exit(main())
