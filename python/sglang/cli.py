"""The `sglang` command: one word, then what the program of that name takes. Nothing is imported before it is needed."""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "serve": "serve a model over HTTP",
    "chat": "talk to a model in the terminal",
    "bench": "measure: `bench serving` a running server, `bench latency` one batch without a server",
    "plan": "tell what memory a model takes and whether it fits, without loading it",
    "explain": "show what a program of the language does, step by step, as text or as a drawing",
    "check-env": "show versions, devices and memory, and what is missing",
    "version": "print the version",
}
BENCHES = {
    "serving": "load on a running server: time to first token, throughput",
    "latency": "one static batch, no server: prefill and decode",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for a command that does not exist."""
    words = list(sys.argv[1:] if argv is None else argv)
    match words:
        case ["serve", *rest]:
            from sglang.launch_server import main as serve

            return serve(rest, "sglang serve")
        case ["chat", *rest]:
            from sglang.chat import main as chat

            return chat(rest, "sglang chat")
        case ["bench", *rest]:
            return bench(rest)
        case ["plan", *rest]:
            from sglang.plan_memory import main as plan

            return plan(rest, "sglang plan")
        case ["explain", *rest]:
            from sglang.lang.explain import main as explain

            return explain(rest, "sglang explain")
        case ["check-env", *rest]:
            from sglang.check_env import main as check_env

            return check_env(rest, "sglang check-env")
        case ["version" | "--version" | "-V"]:
            print(version())
            return 0
        case ["version", extra, *_]:
            return wrong(f"sglang version takes nothing more, got {extra!r}")
        case ["--help" | "-h" | "help", *_]:
            print(usage("sglang COMMAND ...", COMMANDS, "sglang COMMAND --help"))
            return 0
        case []:
            print(usage("sglang COMMAND ...", COMMANDS, "sglang COMMAND --help"), file=sys.stderr)
            return 2
        case [word, *_]:
            return unknown("sglang", word, COMMANDS)
    raise AssertionError(words)


def bench(words: list[str]) -> int:
    match words:
        case ["--help" | "-h" | "help", *_]:
            print(usage("sglang bench WHAT ...", BENCHES, "sglang bench WHAT --help"))
            return 0
        case []:
            print(usage("sglang bench WHAT ...", BENCHES, "sglang bench WHAT --help"), file=sys.stderr)
            return 2
        case [what, *rest] if what in BENCHES:
            return importlib.import_module(f"sglang.bench_{what}").main(rest, f"sglang bench {what}") or 0
        case [what, *_]:
            return unknown("sglang bench", what, BENCHES)
    raise AssertionError(words)


def usage(line: str, words: dict[str, str], more: str) -> str:
    width = max(map(len, words)) + 2
    rows = "\n".join(f"  {word:<{width}}{says}" for word, says in words.items())
    return f"usage: {line}\n\n{rows}\n\n`{more}` tells the rest."


def unknown(before: str, word: str, words: dict[str, str]) -> int:
    import difflib

    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    hint = f"; did you mean `{before} {near[0]}`?" if near else f"; there are {', '.join(words)}"
    return wrong(f"`{before} {word}` does not exist{hint}")


def wrong(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("sglang")
    except PackageNotFoundError:
        return "unknown (a source tree that was never installed)"


if __name__ == "__main__":
    sys.exit(main())
