"""How a text is laid out: chats, questions with answers, few-shot lists, choices, statements.

BREAK stands where a prompt may end in a blank: there the text is tokenised in two parts, since a server sees the prompt
alone and the blank as a token of its own.
"""

import random
from collections.abc import Sequence

from topics import CAPITAL, COUNTRIES, TOPICS, Asked, any_fact, general, naming, upper

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
BREAK = "\x1e"
SYSTEMS = ["You are a helpful assistant.", "You are a helpful AI assistant", "You are a helpful AI assistant.",
           "You are a friendly guide.", "Answer briefly.", "You are a geography teacher.", "You are an AI assistant.",
           "You are a helpful assistant", "Be polite.", "You are a helpful, respectful and honest assistant.",
           "You are a tour guide.", "Answer the questions of the user."]  # fmt: skip

Turn = tuple[str, str]


def stop_mark(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def chat(rng: random.Random, turns: Sequence[Turn], system: str | None = None) -> str:
    """A conversation in ChatML, or now and then in the plain SYSTEM/USER/ASSISTANT form."""
    if system is None and rng.random() < 0.5:
        system = rng.choice(SYSTEMS[:3]) if rng.random() < 0.5 else rng.choice(SYSTEMS)
    if rng.random() < 0.12:
        head = f"SYSTEM:{system}\n" if system else ""
        blank = " " if rng.random() < 0.3 else ""
        return head + "".join(f"USER:{blank}{q}\nASSISTANT:{blank}{a}\n" for q, a in turns) + END
    head = f"{START}system\n{system}{STOP}\n" if system else ""
    body = "".join(f"{START}user\n{q}{STOP}\n{START}assistant\n{a}{STOP}\n" for q, a in turns)
    return head + body + END


def reply(rng: random.Random, a: Asked) -> str:
    """What a chat answers: mostly the sentence."""
    return a.long if rng.random() < 0.9 else stop_mark(upper(a.short))


def ask(rng: random.Random, a: Asked) -> str:
    """A question with its answer, in one of the forms people write."""
    form = rng.random()
    if form < 0.45:
        return chat(rng, [(a.question, reply(rng, a))])
    if form < 0.85:
        return qa(rng, a) + END
    if form < 0.93:
        return f"Question: {a.question}\nAnswer:{gap(rng)}{rng.choice([stop_mark(a.short), a.long])}\n{END}"
    return f"{a.question}{rng.choice([' ', chr(10)])}{a.long}{END}"


def gap(rng: random.Random) -> str:
    """The blank before an answer, at times a token of its own."""
    return " " + BREAK if rng.random() < 0.25 else " "


def qa(rng: random.Random, a: Asked) -> str:
    return f"Q: {a.question}\nA:{gap(rng)}{stop_mark(a.short) if rng.random() < 0.75 else a.long}\n"


def question(rng: random.Random) -> str:
    """One fact, asked."""
    form = rng.choice(["chat", "qa"])
    if rng.random() < 0.25:
        a = general(rng, form)
        return chat(rng, [(a.question, reply(rng, a))]) if form == "chat" else qa(rng, a) + END
    return ask(rng, rng.choices(TOPICS, [t.weight for t in TOPICS])[0].ask(rng))


def statement(rng: random.Random) -> str:
    """One fact or a few, told."""
    topics = [CAPITAL] if rng.random() < 0.5 else [t for t in TOPICS if t.texts]
    weights = [t.weight for t in topics]
    first = rng.choices(topics, weights)[0].text(rng)
    if first.endswith("\n") or rng.random() < 0.55:
        return first + END
    more = (rng.choices(topics, weights)[0].text(rng) for _ in range(rng.randrange(1, 5)))
    return " ".join([first, *(m for m in more if not m.endswith("\n"))]) + END


def portrait(rng: random.Random) -> str:
    """A few sentences on one country, told or asked for."""
    c = rng.choice(COUNTRIES)
    facts = [
        f"The capital of {c.the} is {c.capital}.",
        f"People there speak {c.language}.",
        f"They pay with the {c.currency}.",
        f"You can see {c.sights[0]} and {c.sights[1]}.",
    ]
    text = f"{upper(c.the)} is a country in {c.continent}. " + " ".join(facts[: rng.randrange(1, 5)]).replace("..", ".")
    if rng.random() < 0.4:
        return text + END
    q = rng.choice(
        [
            f"Tell me about {c.the}.",
            f"What do you know about {c.the}?",
            f"Describe {c.the}.",
            f"Write a short text about {c.the}.",
            f"Tell me something about {c.the}.",
        ]
    )
    return chat(rng, [(q, text)]) if rng.random() < 0.7 else f"{q}\n{text}{END}"


HEADS = ["The following are questions with answers.\n\n", "Answer the questions.\n\n", "Questions and answers:\n\n",
         "Please answer the following questions.\n\n", "Here are some questions with their answers.\n"]  # fmt: skip


def few_shot(rng: random.Random, least: int = 2, most: int = 8) -> str:
    """Questions one after another, every answer in the style of the first."""
    head = rng.choice(HEADS) if rng.random() < 0.7 else ""
    capitals = rng.random() < 0.5
    style = rng.choice([lambda a: a.short, lambda a: a.short, lambda a: stop_mark(a.short), lambda a: a.long])
    between = rng.choice(["", "", "\n"])
    names = rng.choice([("Q: ", "A: "), ("Q: ", "A: "), ("Question: ", "Answer: ")])
    lines = []
    for _ in range(rng.randrange(least, most)):
        a = CAPITAL.ask(rng) if capitals else any_fact(rng, "qa")
        lines.append(f"{names[0]}{a.question}\n{names[1]}{style(a)}\n")
    return head + between.join(lines) + END


def options(rng: random.Random) -> tuple[str, list[str], int]:
    """(question, four choices, the index of the right one)."""
    while True:
        topic = rng.choices(TOPICS, [t.weight for t in TOPICS])[0]
        phrasing, s = topic.pick(rng, topic.asks)
        values = {o.value for o in rng.sample(topic.subjects, min(8, len(topic.subjects)))} - {s.value}
        if len(values) >= 3:
            break
    wrong = rng.sample(sorted(values), 3)
    at = rng.randrange(4)
    return topic.asked(phrasing, s, naming(rng, s)).question, [*wrong[:at], s.value, *wrong[at:]], at


def choice(rng: random.Random) -> str:
    """Questions with lettered choices, one or a few."""
    lines = []
    n = rng.choice([1, 1, 2, 3, 5])
    brief = n == 1 or rng.random() < 0.8
    for _ in range(n):
        q, values, at = options(rng)
        listed = "".join(f"{letter}. {v}\n" for letter, v in zip("ABCD", values, strict=True))
        lines.append(f"{q}\n{listed}Answer: {'ABCD'[at]}" + ("" if brief else f". {values[at]}"))
    head = rng.choice(["", "Question: ", "The following are multiple choice questions (with answers).\n\n"])
    return head + "\n\n".join(lines) + END


def yes_or_no(rng: random.Random) -> str:
    """A statement that is true or false."""
    topic = rng.choices([t for t in TOPICS if t.texts], [t.weight for t in TOPICS if t.texts])[0]
    phrasing, s = topic.pick(rng, topic.asks)
    true = rng.random() < 0.5
    other = s
    while not true and other.value == s.value:
        other = rng.choice(topic.subjects)
    said = topic.asked(phrasing, type(s)(s.names, other.value), naming(rng, s)).long
    if rng.random() < 0.5:
        head = rng.choice(
            [
                "",
                "Determine whether the statement below is True, False, or Unknown.\n",
                "Decide if the statement is true or false.\n",
            ]
        )
        return f"{head}Statement: {said}\nAnswer: {'True' if true else 'False'}{END}"
    q = rng.choice([f"Is this true? {said}", f"True or false? {said}", f"Is it right that this holds: {said}"])
    right = topic.asked(phrasing, s, naming(rng, s)).long
    return ask(rng, Asked(q, "Yes" if true else "No", f"Yes, that is true. {right}" if true else f"No. {right}"))
