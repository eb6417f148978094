"""What scripts share that run one program over a backend named on their command line."""

import argparse
from typing import Any

__test__ = False  # nothing here is a test


def add_common_sglang_args_and_parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add what names a backend and where results go, and parse the command line."""
    parser.add_argument("--parallel", type=int, default=64, help="programs under way at a time (default: %(default)s)")
    parser.add_argument("--host", default="http://127.0.0.1", help="of a server of ours (default: %(default)s)")
    parser.add_argument("--port", type=int, default=30000, help="its port (default: %(default)s)")
    parser.add_argument(
        "--backend", default="srt", help="srt: that server; else an OpenAI model (default: %(default)s)"
    )
    parser.add_argument("--result-file", default="result.jsonl", help="(default: %(default)s)")
    return parser.parse_args()


def select_sglang_backend(args: argparse.Namespace) -> Any:
    """The backend of `add_common_sglang_args_and_parse`. "srt-no-parallel" sends one request for each gen.

    Raises ValueError for a name that is neither ours nor one of OpenAI's.
    """
    import sglang as sgl

    if args.backend in ("srt", "srt-no-parallel"):
        host = args.host if "://" in args.host else f"http://{args.host}"
        return sgl.RuntimeEndpoint(f"{host}:{args.port}", fusion=args.backend == "srt")
    if args.backend.startswith("gpt-"):
        return sgl.OpenAI(args.backend)
    raise ValueError(f"--backend must be srt, srt-no-parallel or an OpenAI model (gpt-...), got {args.backend!r}")
