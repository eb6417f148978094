"""python -m sglang.launch_server: serve a model over HTTP."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sglang.base.config import ServerConfig, add_flags, from_args
from sglang.base.known_flags import refusal


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of after a screenful of flags."""

    def error(self, message: str) -> NoReturn:
        import difflib

        what, _, words = message.partition("unrecognized arguments: ")
        hint = ""
        if words:
            flag = next((word.split("=")[0] for word in words.split() if word.startswith("-")), words.split()[0])
            if known := refusal(flag):
                self.exit(2, f"error: {known}\n")
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
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON with more flags; those given here win.")
    add_flags(parser)
    return parser


def read_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> ServerConfig:
    """The settings in `argv`, unresolved. Ends the program with code 2 where they cannot be read."""
    args = parser.parse_args(argv)
    if file := vars(args).get("config"):
        args = parser.parse_args([*_words(parser, file), *(sys.argv[1:] if argv is None else argv)])
    if model := vars(args).get("model"):
        if args.model_path:
            parser.error(f"the model is named twice: {model} and --model-path {args.model_path}")
        args.model_path = model
    return from_args(args)


def _words(parser: argparse.ArgumentParser, file: str) -> list[str]:
    """The flags in a file, as they would be typed: `tp-size: 2`, `log_requests: true`."""
    import yaml

    try:
        flags = yaml.safe_load(Path(file).read_text("utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"argument --config: {file}: {' '.join(str(error).split())}")
    if not isinstance(flags, dict):
        parser.error(f"argument --config: {file}: must hold flags and their values, got {type(flags).__name__}")
    words: list[str] = []
    for name, value in flags.items():
        flag = "--" + str(name).replace("_", "-")
        if isinstance(value, dict):
            value = json.dumps(value)
        if value is True:
            words.append(flag)
        elif value not in (False, None):
            words.append(f"{flag}={value}")
    return words


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    config = read_flags(server_parser(prog), argv)
    from sglang.launch import launch_server

    return launch_server(config)


if __name__ == "__main__":
    sys.exit(main())
