"""python -m sglang.srt.flush_cache: empty a running server's prefix cache."""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where the server cannot be reached or refuses, as it does while requests run."""
    parser = argparse.ArgumentParser(
        prog="python -m sglang.srt.flush_cache", description="Empty a running server's prefix cache."
    )
    parser.add_argument("--url", default="http://localhost:30000", help="the server (default: %(default)s)")
    parser.add_argument("--api-key", help="its key, where it asks for one")
    parser.add_argument("--timeout", type=float, default=0.0, metavar="S", help="seconds to wait for running requests")
    args = parser.parse_args(argv)
    import httpx

    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    url = args.url.rstrip("/") + "/flush_cache"
    try:
        answer = httpx.post(url, params={"timeout": args.timeout}, headers=headers, timeout=args.timeout + 30)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"error: {url}: {error}", file=sys.stderr)
        return 1
    print(answer.text.strip(), file=sys.stdout if answer.is_success else sys.stderr)
    return 0 if answer.is_success else 1


if __name__ == "__main__":
    sys.exit(main())
