"""from sglang.srt.constrained import build_regex_from_object: a pydantic class or JSON schema as a pattern."""

from sglang.grammar.schema import build_regex_from_object

__all__ = ["build_regex_from_object"]
