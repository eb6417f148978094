"""python -m sglang.launch_server: serve a model over HTTP."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from sglang.base.config import ServerConfig, add_flags, from_args


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of after a screenful of flags."""

    def error(self, message: str) -> NoReturn:
        import difflib

        what, _, words = message.partition("unrecognized arguments: ")
        hint = ""
        if words:
            flag = next((word.split("=")[0] for word in words.split() if word.startswith("-")), words.split()[0])
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            message = f"{what}unknown argument {flag}"
            hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"error: {message}{hint} (`{self.prog} --help` lists what there is)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


def server_parser(prog: str | None = None) -> argparse.ArgumentParser:
    prog = prog or "python -m sglang.launch_server"
    parser = Parser(
        prog=prog,
        usage=f"{prog} [MODEL] [--flag VALUE ...]",
        description="Serve a model over HTTP: /generate and the OpenAI API. Without MODEL, the demo model.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as --model-path", default=argparse.SUPPRESS)
    add_flags(parser)
    return parser


def read_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> ServerConfig:
    """The settings in `argv`, unresolved. Ends the program with code 2 where they cannot be read."""
    args = parser.parse_args(argv)
    if model := vars(args).get("model"):
        if args.model_path:
            parser.error(f"the model is named twice: {model} and --model-path {args.model_path}")
        args.model_path = model
    return from_args(args)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    config = read_flags(server_parser(prog), argv)
    from sglang.launch import launch_server

    return launch_server(config)


if __name__ == "__main__":
    sys.exit(main())
