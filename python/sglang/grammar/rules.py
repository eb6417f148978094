"""What a caller asks for (Rules), and what the scheduler sees of it (Compiled, Cursor).

Three lifetimes: Rules come with a request; Compiled lives as long as a vocabulary and a cache; a Cursor is one
sequence's place in it, copied freely.
"""

from collections.abc import Hashable
from typing import Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from sglang.base.errors import FieldError
from sglang.base.sampling import SamplingParams

Words = NDArray[np.uint32]  # a mask: bit t % 32 of word t // 32 says whether token t may come next

Kind = Literal["regex", "json_schema", "ebnf", "choices", "structural_tag"]

TYPES = {
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?[0-9]*\.?[0-9]+",
    "bool": r"(True|False)",
    "str": r"\"[\w\d\s]*\"",
}


class Rules(Struct, frozen=True, array_like=True):
    """A constraint as it was sent. Hashable: it is the key of caches.

    text: pattern, schema, grammar or tag description, as `kind` says. choices: for kind "choices".
    strict: a schema's keywords that are not supported are errors; otherwise they are ignored.
    spaced: JSON is written as json.dumps writes it (", " and ": "); otherwise without blanks.
    """

    kind: Kind
    text: str = ""
    choices: tuple[str, ...] = ()
    strict: bool = True
    spaced: bool = True

    @staticmethod
    def of_type(name: str, field: str = "dtype") -> "Rules":
        """int, float, bool, str: the types that programs may ask for."""
        if name not in TYPES:
            raise FieldError(field, f"{field} must be one of {', '.join(TYPES)}, got {name!r}")
        return Rules("regex", TYPES[name])

    @staticmethod
    def of(params: SamplingParams) -> "Rules | None":
        """The constraint of a request, None where it is free. At most one is set (`base/sampling.py` sees to that)."""
        strict, spaced = params.strict, not params.compact_json
        match params.constraint:
            case "":
                return None
            case "dtype":
                return Rules.of_type(params.dtype or "")
            case "choices":
                return Rules("choices", choices=params.choices)
            case "json_schema":
                return Rules("json_schema", params.json_schema or "", strict=strict, spaced=spaced)
            case "structural_tag":
                return Rules("structural_tag", params.structural_tag or "", strict=strict, spaced=spaced)
            case "ebnf":
                return Rules("ebnf", params.ebnf or "")
            case _:
                return Rules("regex", params.regex or "")


class Illegal(ValueError):
    """A token or text was given that the constraint does not allow there."""


class Machine(NamedTuple):
    """A constraint whose cursors are one number, as a device follows it: an automaton over bytes (`base.plan.Load`)."""

    number: int  # no other has it
    table: NDArray[np.int16]
    flags: NDArray[np.uint8]


class Cursor(Protocol):
    """One sequence's place in a constraint. Cheap to fork; a fork and its origin do not see each other."""

    def mask(self, row: Words | None = None) -> Words:
        """The tokens that may come next, uint32 [ceil(vocabulary / 32)]; written into `row` where one is given.

        End-of-sequence tokens are allowed exactly where the text may end; other special tokens never. Without `row` the
        result may be shared: do not write to it.
        """
        ...

    def advance(self, token: int) -> None:
        """Takes a token. Raises Illegal, and stays where it was, for one outside the mask."""
        ...

    def feed(self, text: bytes) -> None:
        """Takes text, however it was tokenised. Raises Illegal, and stays where it was."""
        ...

    def forced(self) -> bytes:
        """The bytes that must come next: up to the next choice (or possible end); empty where there is one at once."""
        ...

    def follows(self, text: bytes) -> bool:
        """Whether `text` may come next. May say yes where it does not know."""
        ...

    def fork(self) -> "Cursor": ...

    @property
    def accepting(self) -> bool:
        """The text may end here."""
        ...

    @property
    def finished(self) -> bool:
        """Nothing but the end may come next."""
        ...

    @property
    def place(self) -> Hashable | None:
        """Cursors at equal places have the same future; None where that cannot be told."""
        ...

    @property
    def machine(self) -> Machine | None:
        """What a device may follow in its place; None where it takes more than an automaton."""
        ...

    @property
    def state(self) -> int:
        """Of the machine, where there is one."""
        ...


class Compiled(Protocol):
    def cursor(self) -> Cursor:
        """A cursor at the beginning."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory held, about."""
        ...
