"""Constraints: what compiling and masks cost, beside llguidance, xgrammar and outlines-core, on the same vocabularies.

    python benchmark/grammar_compile.py --models DIR [DIR ...] [--repeat 5]

DIR: a folder with a tokenizer.json. Engines that are not installed are left out; what takes more than ten seconds to
compile is measured once (outlines-core's automaton over 128k tokens takes more than a minute). Two constraints: the
pattern of a character's record, and a JSON schema of 60 fields. Reported, as medians of the repeats:

  cold     compiling, with nothing cached (ours: to the automaton and its first masks), ms
  cached   asking for the same again, us
  first    a mask at each token of one valid text, the first time any text comes by: mean, and the slowest, us
  again    the same the second time, us
  forced   tokens of that text that need no model: ours, by token-safe jumps; model steps saved
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from forms import FIELDS, PATTERN, RECORD, schema
from results_file import add_flag, save

from sglang.grammar.compiler import Compiler
from sglang.grammar.jump import Jumper
from sglang.grammar.rules import Rules
from sglang.grammar.vocab import Vocabulary
from sglang.text.tokenizer import Tokenizer, load

PATIENCE_S = 10.0  # what takes longer to compile is measured once
UNITS = {"cold": "ms", "cached": "us", "first": "us", "slowest": "us", "again": "us"}


class Matcher(NamedTuple):
    """One engine's idea of a text under way."""

    mask: Callable[[], Any]
    advance: Callable[[int], bool]


class Case(NamedTuple):
    kind: str  # "regex" or "json_schema"
    text: str
    tokens: list[int]


def median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1e3


class Ours:
    name = "sglang"

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.compiler = Compiler(vocabulary)
        self.compiler.rehearse()
        self.compiler.compile(Rules("regex", "warm"))

    def fresh(self) -> None:
        self.compiler._known.clear()

    def compile(self, case: Case) -> Any:
        return self.compiler.compile(Rules("regex" if case.kind == "regex" else "json_schema", case.text))

    def matcher(self, compiled: Any) -> Matcher:
        cursor = compiled.cursor()
        row = np.zeros(self.vocabulary.words, np.uint32)

        def advance(token: int) -> bool:
            cursor.advance(token)
            return True

        return Matcher(lambda: cursor.mask(row), advance)


class LLGuidance:
    name = "llguidance"

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary):
        import llguidance

        from sglang.grammar.contextfree import Engine

        self.library = llguidance
        self.vocabulary = vocabulary
        self.tokenizer = Engine(vocabulary).tokenizer
        self.compiled: dict[str, Any] = {}

    def fresh(self) -> None:
        self.compiled.clear()

    def compile(self, case: Case) -> Any:
        if case.text not in self.compiled:
            make = self.library.LLMatcher
            blanks = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            grammar = (
                make.grammar_from_regex(case.text.replace(r"[\w\d\s]", r"[0-9A-Za-z_ \t\n\r]"))
                if case.kind == "regex"
                else make.grammar_from_json_schema(case.text, overrides=blanks)  # type: ignore[arg-type]  # its stub forgets dicts
            )
            self.compiled[case.text] = make(self.tokenizer, grammar)
        return self.compiled[case.text]

    def matcher(self, compiled: Any) -> Matcher:
        matcher = compiled.deep_copy()
        row = np.zeros(self.vocabulary.words, np.int32)
        return Matcher(lambda: matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes), matcher.consume_token)


class XGrammar:
    name = "xgrammar"

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary):
        import xgrammar

        self.library = xgrammar
        info = xgrammar.TokenizerInfo(
            [bytes(t) for t in vocabulary.bytes],
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=list(vocabulary.eos_ids),
        )
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=2)
        self.size = vocabulary.size

    def fresh(self) -> None:
        self.compiler.clear_cache()

    def compile(self, case: Case) -> Any:
        if case.kind == "regex":
            return self.compiler.compile_regex(case.text.replace(r"[\w\d\s]", r"[0-9A-Za-z_ \t\n\r]"))
        return self.compiler.compile_json_schema(case.text, any_whitespace=False, separators=(", ", ": "))

    def matcher(self, compiled: Any) -> Matcher:
        matcher = self.library.GrammarMatcher(compiled)
        row = self.library.allocate_token_bitmask(1, self.size)
        return Matcher(lambda: matcher.fill_next_token_bitmask(row), matcher.accept_token)


class OutlinesCore:
    name = "outlines-core"

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary):
        import outlines_core

        self.library = outlines_core
        entries: dict[bytes, list[int]] = {}
        for i, token in enumerate(vocabulary.bytes):
            if token:
                entries.setdefault(token, []).append(i)
        self.vocabulary = outlines_core.Vocabulary(vocabulary.eos_ids[0], entries)
        self.words = vocabulary.words
        self.compiled: dict[str, Any] = {}

    def fresh(self) -> None:
        self.compiled.clear()

    def compile(self, case: Case) -> Any:
        if case.text not in self.compiled:
            from outlines_core import json_schema

            pattern = case.text if case.kind == "regex" else json_schema.build_regex_from_schema(case.text, " ")
            self.compiled[case.text] = self.library.Index(pattern, self.vocabulary)
        return self.compiled[case.text]

    def matcher(self, compiled: Any) -> Matcher:
        guide = self.library.Guide(compiled)
        row = np.zeros(self.words, np.uint32)

        def advance(token: int) -> bool:
            try:
                guide.advance(token, return_tokens=False)
            except ValueError:
                return False
            return True

        return Matcher(lambda: guide.write_mask_into(row.ctypes.data, self.words, 4), advance)


def measure(engine: Any, case: Case, repeat: int) -> dict[str, float] | None:
    """The five times, in the units of UNITS; None: the engine refuses the text."""
    cold, cached, first, slowest, again = [], [], [], [], []
    for _ in range(repeat):
        engine.fresh()
        start = time.perf_counter()
        compiled = engine.compile(case)
        cold.append(time.perf_counter() - start)
        start = time.perf_counter()
        engine.compile(case)
        cached.append(time.perf_counter() - start)
        for means in (first, again):
            matcher, times = engine.matcher(compiled), []
            for token in case.tokens:
                start = time.perf_counter()
                matcher.mask()
                times.append(time.perf_counter() - start)
                if not matcher.advance(token):
                    return None
            means.append(statistics.mean(times))
            if means is first:
                slowest.append(max(times))
        if cold[-1] > PATIENCE_S:
            break
    micro = [1e3 * median_ms(times) for times in (cached, first, slowest, again)]
    return dict(zip(UNITS, [median_ms(cold), *micro], strict=True))


def forced(ours: Ours, case: Case) -> str:
    """How many of the text's tokens jumps give, where the model writes the rest of it as the tokenizer would."""
    cursor = ours.compile(case).cursor()
    jumper = Jumper(ours.vocabulary, ours.encode)
    known: list[int] = []
    steps = 0
    times = []
    while len(known) < len(case.tokens):
        text = cursor.forced()
        if text:
            after = cursor.fork()
            after.feed(text)
            start = time.perf_counter()
            jump = jumper.jump(ours.encode("x\n"), known, text, after.follows)
            times.append(time.perf_counter() - start)
            if jump is not None:
                known = known[: jump.keep] + jump.tokens
                cursor.feed(jump.text)
                assert known == case.tokens[: len(known)], "a jump away from the tokenizer's own way"
                continue
        token = case.tokens[len(known)]
        cursor.advance(token)
        known.append(token)
        steps += 1
    mean_ms = 1e3 * statistics.mean(times)
    return f"{len(known) - steps} of {len(known)} tokens ({mean_ms:.2f} ms a jump, {len(times)} asked)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--repeat", type=int, default=5)
    add_flag(parser, "grammar_compile")
    args = parser.parse_args()
    rows = []
    value, instance = schema()
    for folder in args.models:
        tokenizer = load(folder)
        spelled = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        vocabulary = Vocabulary(spelled, tokenizer.eos_ids, tokenizer.special_ids)
        cases = {
            "character record": Case("regex", PATTERN, tokenizer.encode(RECORD, add_special_tokens=False)),
            f"{FIELDS} fields": Case(
                "json_schema", json.dumps(value), tokenizer.encode(json.dumps(instance), add_special_tokens=False)
            ),
        }
        engines: list[Any] = []
        for kind in (Ours, LLGuidance, XGrammar, OutlinesCore):
            try:
                engines.append(kind(tokenizer, vocabulary))
            except ImportError:
                print(f"{kind.name}: not installed")
        for name, case in cases.items():
            print(f"\n{folder}: {vocabulary.size} tokens; {name}: {len(case.tokens)} tokens of text")
            print(f"{'':14} {'cold ms':>10} {'cached us':>10} {'first us':>10} {'slowest us':>10} {'again us':>10}")
            for engine in engines:
                found = measure(engine, case, args.repeat)
                shown = " ".join(f"{value:10.1f}" for value in found.values()) if found else "refuses the text"
                print(f"{engine.name:14} {shown}", flush=True)
                where = {"vocabulary": vocabulary.size, "constraint": name, "engine": engine.name}
                rows.append({**where, **(found or dict.fromkeys(UNITS))})
            print(f"forced by jumps: {forced(engines[0], case)}")
        engines[0].compiler.close()
    if args.save:
        note = (
            "cold: compiling with nothing cached; cached: asking again; first and slowest: a mask where no text came "
            f"by before, mean and worst; again: the second time. Medians of {args.repeat}."
        )
        save(args.save, rows, title="Constraints: compiling and masks", units=UNITS, note=note)


if __name__ == "__main__":
    main()
