"""Rules -> what needs no vocabulary and may take long to make: an automaton, or a grammar for the library."""

from collections.abc import Callable

from sglang.base.errors import FieldError
from sglang.grammar import automaton, contextfree, regex, schema, tags
from sglang.grammar.automaton import Automaton
from sglang.grammar.language import Alt, Text
from sglang.grammar.rules import Rules
from sglang.grammar.work import TooLarge


def prepare(rules: Rules) -> Automaton | str:
    """The automaton of rules, or the grammar (llguidance's) of those that need a stack. Raises FieldError."""
    match rules.kind:
        case "regex":
            return automaton.compile(regex.parse(rules.text), "regex")
        case "choices":
            return automaton.compile(Alt(tuple(map(Text, rules.choices))), "choices")
        case "ebnf":
            return contextfree.from_grammar(rules.text)
        case "json_schema":
            read = schema.load(rules.text)
            layout = schema.Layout.plain(rules.spaced)
            try:
                return automaton.compile(schema.parse(read, strict=rules.strict, layout=layout), "json_schema")
            except (schema.NotRegular, TooLarge) as error:
                if rules.strict:
                    schema.check_one_of(read)
                return _with_stack(lambda: contextfree.from_schema(read, rules.strict, rules.spaced), error)
        case "structural_tag":
            found = tags.read(rules.text)
            try:
                return automaton.compile(tags.parse(found, rules.strict, rules.spaced), tags.NAME)
            except (schema.NotRegular, TooLarge) as error:
                listed = [(t.trigger, t.begin, t.schema, t.end) for t in found]
                return _with_stack(lambda: contextfree.from_tags(listed, rules.strict, rules.spaced), error)


def _with_stack(build: Callable[[], str], reason: Exception) -> str:
    try:
        return build()
    except ValueError as error:
        if isinstance(reason, TooLarge):
            raise reason from None
        raise FieldError("json_schema", str(error), getattr(error, "status", 400)) from None


def rehearse() -> None:
    """Make now what is made once: imports, tables of Unicode's classes and cases."""
    regex.parse(r"(?i)[^\w\d\s\xe9]")
    automaton.compile(regex.parse("(a|b)*c"))
    contextfree.from_grammar('start: "a"')
