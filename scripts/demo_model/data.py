"""The demo model's text: documents generated from tables of facts, seeded, without a network.

    python scripts/demo_model/data.py 5            # print five documents

`topics.py` holds what is known and which pairs are held back; `forms.py`, `everyday.py` and `programs.py`, how it is
written.
"""

import json
import random
import sys
from collections.abc import Callable, Sequence

from everyday import count, order, sentence_of_pairs, story, sum_held_back, sums, talk, tips, unknown
from forms import END, START, STOP, choice, few_shot, portrait, question, statement, yes_or_no
from programs import (
    FILL_IN,
    SIGHTS_ASK,
    character,
    country_record,
    endings,
    expert,
    extraction,
    judge,
    lists,
    long_document,
    plan,
    profile,
    react,
    reading,
    record,
    retrieval,
    sights,
    tool,
    tool_question,
)  # fmt: skip
from topics import CHARACTERS, COUNTRIES, FAMOUS, GENERAL, KNOWN, TOPICS, fill, held_back

MIX: list[tuple[float, Callable[[random.Random], str]]] = [
    (22, question), (15, statement), (4, portrait), (5, few_shot), (4, choice), (4, yes_or_no), (6, lists), (9, sights),
    (8, tool), (2, react), (2, expert), (6, tips), (5, talk), (1.5, unknown), (6, story), (1.5, order), (12, sums),
    (1, count),
    (0.5, sentence_of_pairs), (6, character), (8, record), (2, extraction), (1, profile), (4, judge), (2, plan),
    (4, retrieval), (2, reading), (1, endings), (4, long_document),
]  # fmt: skip


def corpus(seed: int, chars: int, more: Sequence[str] = ()) -> list[str]:
    """Documents of about `chars` characters in all; the kinds named in `more` come four times as often."""
    rng = random.Random(seed)
    kinds = [kind for _, kind in MIX]
    weights = [4 * w if kind.__name__ in more else w for w, kind in MIX]
    found, size = [], 0
    while size < chars:
        found.append(rng.choices(kinds, weights)[0](rng))
        size += len(found[-1])
    return found


def asked_in_chat(*turns: str, system: str | None = None) -> str:
    """A chat that ends where the assistant is to speak; turns alternate, the user's first."""
    head = f"{START}system\n{system}{STOP}\n" if system else ""
    roles = ("user", "assistant")
    body = "".join(f"{START}{roles[i % 2]}\n{text}{STOP}\n" for i, text in enumerate(turns))
    return f"{head}{body}{START}assistant\n"


def questions() -> list[dict[str, str]]:
    """Held-back pairs: {kind, prompt, expected}.

    An answer is right if `expected` is in its first line; a JSON record, if it is equal.
    """
    found = []

    def add(kind: str, prompt: str, expected: str) -> None:
        found.append({"kind": kind, "prompt": prompt, "expected": expected})

    for topic in TOPICS:
        kind = (
            topic.name
            if topic.name in ("capital", "country of a capital", "continent", "language", "currency")
            else "other facts"
        )
        for s in topic.subjects:
            for name in s.names:
                for q in (q for q in topic.asks if held_back(topic.name, q, s.key)):
                    text = fill(q, name, s.value)
                    add(f"{kind}, Q/A", f"Q: {text}\nA:", s.value)
                    if topic.name == "capital":
                        add(f"{kind}, chat", asked_in_chat(text, system="You are a helpful assistant."), s.value)
                        add(f"{kind}, plain roles", f"USER:{text}\nASSISTANT:", s.value)
                for t in (t for t in topic.texts if held_back(topic.name, t, s.key)):
                    if t.replace("||", " ") == topic.long:  # not unseen: chats answer with this very sentence
                        continue
                    add(f"{kind}, completion", fill(t.split("||")[0], name, s.value), s.value)
    for g in GENERAL:
        for form, shape in (("qa", "Q: {q}\nA:"), ("chat", asked_in_chat("{q}"))):
            if held_back("general", form, g.key):
                for q in g.questions:
                    add("general facts", shape.replace("{q}", q), g.short if g.short.lower() in g.long.lower() else "")
    rng = random.Random(7)
    for kind, sign in (("addition", "+"), ("subtraction", "-")):
        pairs = [
            (a, b) for a in range(100) for b in range(100) if sum_held_back(sign, a, b) and (sign == "+" or a >= b)
        ]
        for a, b in rng.sample(pairs, 100):
            value = a + b if sign == "+" else a - b
            add(kind, f"Q: What is {a} {sign} {b}?\nA: ", str(value))
            add(kind, f"{a} {sign} {b} =", str(value))
    for _ in range(4000):
        q, choice, words, _ = tool_question(rng)
        if held_back("tool", "", q):
            add("tool choice", f"To answer this question: {q}. I need to use a", choice)
            use = "The math expression is" if choice == "calculator" else "The key word to search is"
            add("tool argument", f"To answer this question: {q}. I need to use a {choice}. {use}", words)
    for c in COUNTRIES:
        for q in (q for q in SIGHTS_ASK if held_back("sights", q, c.name)):
            before = (f"What is the capital of {c.the}?", f"The capital of {c.the} is {c.capital}.".replace("..", "."))
            kind = "attractions, best known" if c in FAMOUS else "attractions, others"
            add(
                kind, asked_in_chat(*before, q, system="You are a helpful assistant."), c.sights[0].removeprefix("the ")
            )
    for row in CHARACTERS:
        for at, key in ((1, "house"), (2, "blood status")):
            opening = f'{FILL_IN.replace("{n}", row[0])}{{\n    "name": "{row[0]}",\n    "house": "'
            add("characters", opening if at == 1 else f'{opening}{row[1]}",\n    "{key}": "', row[at])
    for c in COUNTRIES:
        for keys in (["name", "capital"], ["capital", "currency"], ["name", "continent"], ["capital", "language"]):
            if held_back("record", ",".join(keys), c.name):
                value = country_record(c)
                expected = json.dumps({k: value[k] for k in keys})
                add(
                    "JSON records",
                    asked_in_chat(f"Write a JSON object with the keys {' and '.join(keys)} for {c.the}."),
                    expected,
                )
    return [q for q in found if q["expected"]]


def programs() -> list[dict[str, str]]:
    """The documentation's programs, each with a pattern that its greedy continuation has to match from the start."""
    head = "Here are two tips for staying healthy: 1. Balanced Diet. 2. Regular Exercise.\n\n"
    ai, helpful = "You are a helpful AI assistant", "You are a helpful assistant."
    pair = "|".join(f"{c.name}(?: - |: ){c.capital}".replace(".", r"\.") for c in COUNTRIES)
    three = rf"1\. (?:{pair})\n2\. (?:{pair})\n3\. (?:{pair})"
    us = KNOWN["United States"]
    tool = "To answer this question: {q}. I need to use a {t}. "
    shots = "".join(
        f"Q: What is the capital of {c}?\nA: {v}\n"
        for c, v in (("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"))
    )
    cases = [
        ("The capital of France is", r" Paris\b"),
        ("The capital city of France is", r".* Paris\b"),
        ("The capital of the United Kindom is", r" London\b"),
        ("The capital of the United States is", r" Washington, D\.C\."),
        ("Today is a sunny day and I like", r" to \w+"),
        ("Once upon a time,", r" there was an? \w+"),
        (f"{head}Now, expand tip 1 into a paragraph:\n", r"A balanced diet[^\n]*\.\n\n"),
        (f"{head}Now, expand tip 2 into a paragraph:\n", r"Regular exercise[^\n]*\.\n\n"),
        (f"{head}Tip 1:Eat well.\nTip 2:Move every day.\nIn summary", r",? [^\n]*(?:healthy|life)"),
        ("Q: What is the IP address of the Google DNS servers?\nA: ", r"8\.8\.8\.8"),
        ("Q: What is the capital of the United Kingdom?\nA:", r" London"),
        ("Q: What is the capital of France?\nA:", r" Paris"),
        ("Q: What is the capital of Japan?\nA:", r" Tokyo"),
        ("Q: What is the capital of France?\nA: ", r"Paris"),
        (asked_in_chat("List 3 countries and their capitals.", system=ai), three),
        (asked_in_chat("List 3 countries and their capitals.", system=helpful), three),
        (asked_in_chat("List 3 countries and their capitals."), three),
        (
            asked_in_chat(
                "What is the capital of the United States?",
                "The capital of the United States is Washington, D.C.",
                "List two local attractions.",
                system=helpful,
            ),
            rf"1\. {us.sights[0][4:]}|1\. {us.sights[0]}".replace("the", "The"),
        ),
        (tool.format(q="What is 7 + 8?", t="calculator") + "The math expression is", r" 7 \+ 8"),
        (
            tool.format(q="Who is the president of France?", t="search engine") + "The key word to search is",
            r" president of France",
        ),
        (
            f"The following are questions with answers.\n\n{shots}Q: What is the capital of the United States?\nA:",
            r" Washington, D\.C\.",
        ),
        (asked_in_chat("Hello"), r"Hello!"),
        (asked_in_chat("Who are you?"), r".*sglang demo model"),
        (
            asked_in_chat("My name is Tom.", "Nice to meet you, Tom! How can I help you?", "What is my name?"),
            r"Your name is Tom",
        ),
        ("The number of hours in a day is ", r"24"),
        ("The number of days in a year is ", r"365"),
        (
            asked_in_chat("Write a JSON object with the keys name and capital for Japan."),
            r'\{\s*"name": "Japan",\s*"capital": "Tokyo"\s*\}',
        ),
        (
            "line apple: REGISTER_CONTENT is <123>\nline stone: REGISTER_CONTENT is <4567>\n\n"
            "Tell me what is the REGISTER_CONTENT in line apple? I need the number.\n"
            "The REGISTER_CONTENT in line apple is <",
            r"123>",
        ),
    ]
    return [{"prompt": p, "pattern": e} for p, e in cases]


if __name__ == "__main__":
    count_wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for text in corpus(1, count_wanted * 3000)[:count_wanted]:
        print(text.replace(END, "") + "\n" + "=" * 40)
