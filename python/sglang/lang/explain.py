"""explain: a program, or what has become of it, as a tree on paper. `sglang explain` is the same from a shell."""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang.lang.drawing import Cost, Step, lines, svg
from sglang.lang.executor import Executor
from sglang.lang.ir import Fork, Gen, Join, Select
from sglang.lang.program import SglFunction
from sglang.lang.state import State
from sglang.lang.tracer import describe


class Explanation:
    """`str` gives the text; a notebook shows the drawing."""

    def __init__(self, title: str, steps: Sequence[Step]):
        self.title = title
        self.steps = steps

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in lines(self.steps))])

    def __repr__(self) -> str:
        return f"Explanation({self.title!r}, {len(self.steps)} steps)"

    def _repr_svg_(self) -> str:
        return svg(self.title, self.steps)


def explain(program: SglFunction | State, *, plot: str | Path | None = None, **kwargs: Any) -> Explanation:
    """Print the graph of a program as far as it is known before it runs (`kwargs`: arguments that are known), or, of a
    state that has been run, what was done: each answer with its tokens from the cache, computed and generated, where
    the backend tells them, and seconds. `plot`: also draw it, into this .svg file."""
    if isinstance(program, SglFunction):
        trace = program.trace(**kwargs)
        explanation = Explanation(f"program {trace.name}", trace.steps())
    else:
        executor = program.stream_executor
        executor.wait(lambda: executor.settled and not executor.run.open)
        explanation = Explanation(f"run of {executor.run.name}", _done(executor))
    if plot is not None:
        Path(plot).write_text(explanation._repr_svg_())
    print(explanation)
    return explanation


def _done(s: Executor) -> list[Step]:
    steps: list[Step] = []
    forked = 0.0
    for i, node in enumerate(s.history):
        match node:
            case Fork(children):
                steps.append(Step(f"fork {len(children)}", branches=[_done(child) for child in children]))
                forked = s.stamps[i]
            case Join(_, mode):
                steps.append(Step(f"join {mode}", joins=True, cost=Cost(seconds=s.stamps[i] - forked)))
            case Gen() | Select():
                value, meta, seconds = s.outcomes[i]
                steps.append(Step(f"{describe(node)} -> {value!r}", asks=True, cost=_cost(meta or {}, seconds)))
            case _:
                steps.append(Step(describe(node)))
    if s.error_ is not None:
        steps.append(Step(f"... {type(s.error_).__name__}: {s.error_}"))
    return steps


def _cost(meta: dict[str, Any], seconds: float) -> Cost:
    prompt, cached = meta.get("prompt_tokens"), meta.get("cached_tokens")
    computed = prompt if prompt is None else prompt - (cached or 0)
    return Cost(cached, computed, meta.get("completion_tokens"), meta.get("e2e_latency", seconds))


def main(argv: Sequence[str] | None = None, prog: str = "python -m sglang.lang.explain") -> int:
    """Returns 2 where there is no such program."""
    parser = argparse.ArgumentParser(prog=prog, description="Show a program's graph, before it runs or after.")
    parser.add_argument("program", metavar="FILE.py:NAME", help="a function with @sgl.function in a file")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT=VALUE", help="arguments of the program, as text")
    parser.add_argument("--url", help="a server: run the program there, greedily, and show what was done")
    parser.add_argument("--plot", metavar="FILE.svg", help="also draw it")
    args = parser.parse_args(argv)
    path, _, name = args.program.rpartition(":")
    kwargs: dict[str, Any] = {}
    for word in args.arguments:
        key, equals, value = word.partition("=")
        if not equals:
            parser.error(f"arguments are written ARGUMENT=VALUE, got {word!r}")
        kwargs[key] = value
    if not Path(path).is_file():
        parser.error(f"no file {path!r}; a program is named FILE.py:NAME")
    found = runpy.run_path(path)  # not as __main__: a script's own runs stay out
    program = found.get(name)
    if not isinstance(program, SglFunction):
        there = ", ".join(key for key, value in found.items() if isinstance(value, SglFunction)) or "none"
        parser.error(f"{path} has no program {name!r}; programs there: {there}")
    try:
        if args.url is None:
            explain(program, plot=args.plot, **kwargs)
            return 0
        from sglang.lang.backends.runtime_endpoint import RuntimeEndpoint

        state = program.run(backend=RuntimeEndpoint(args.url), temperature=0.0, **kwargs)
        explain(state, plot=args.plot)
        return 0 if state.error() is None else 1
    except TypeError as error:  # arguments that do not fit
        parser.error(str(error))
    except RuntimeError as error:  # no server
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
