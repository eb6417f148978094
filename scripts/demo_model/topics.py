"""What the demo model knows: tables of facts and the phrasings in which each kind of fact is asked and told.

A topic is one kind of fact. Its phrasings say {n} (the subject as in a sentence), {N} (the same at a sentence's start),
{v} and {V} (the value). Every pair of a phrasing and a subject is for training or held back, by a hash
that never changes.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
HELD_BACK = 20  # one pair in so many


def table(name: str) -> list[list[str]]:
    """The rows of a file, their cells apart by a bar."""
    lines = (HERE / name).read_text("utf-8").splitlines()
    return [line.split("|") for line in lines if line and not line.startswith("#")]


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def held_back(kind: str, phrasing: str, subject: str) -> bool:
    """Whether this pair is never trained on."""
    return zlib.crc32(f"{kind}|{phrasing}|{subject}".encode()) % HELD_BACK == 0


@dataclass(frozen=True)
class Country:
    name: str
    capital: str
    continent: str
    language: str
    currency: str
    sights: tuple[str, str]

    @property
    def the(self) -> str:
        """The name as it stands in a sentence."""
        return f"the {self.name}" if self.name in WITH_ARTICLE else self.name

    @property
    def names(self) -> list[str]:
        return [self.the, *ALIASES.get(self.name, [])]


WITH_ARTICLE = {
    "Bahamas", "Comoros", "Czech Republic", "Gambia", "Maldives", "Marshall Islands", "Netherlands", "Philippines",
    "Seychelles", "Solomon Islands", "United Arab Emirates", "United Kingdom", "United States",
    "Central African Republic", "Democratic Republic of the Congo", "Dominican Republic", "Republic of the Congo",
    "Ivory Coast",
}  # fmt: skip
ALIASES = {
    "United States": ["the USA", "the US", "America", "the United States of America", "USA", "the U.S."],
    "United Kingdom": ["the UK", "Britain", "Great Britain", "UK", "the United Kindom"],  # a benchmark's own typo
    "Netherlands": ["Holland"],
    "Czech Republic": ["Czechia"],
    "United Arab Emirates": ["the UAE"],
    "Myanmar": ["Burma"],
    "Ivory Coast": ["Ivory Coast", "Cote d'Ivoire"],
    "South Korea": ["the Republic of Korea"],
    "Turkey": ["Turkiye"],
    "Cape Verde": ["Cabo Verde"],
    "East Timor": ["Timor-Leste"],
    "Eswatini": ["Swaziland"],
    "Vatican City": ["the Vatican"],
    "Democratic Republic of the Congo": ["the DRC"],
    "Russia": ["the Russian Federation"],
    "China": ["the People's Republic of China"],
}
COUNTRIES = [Country(r[0], r[1], r[2], r[3], r[4], tuple(r[5].split("; "))) for r in table("countries.txt")]  # type: ignore[arg-type]
KNOWN = {c.name: c for c in COUNTRIES}
FAMOUS = [
    KNOWN[n]
    for n in (
        "France",
        "Germany",
        "Italy",
        "Spain",
        "Japan",
        "China",
        "India",
        "Brazil",
        "Canada",
        "Mexico",
        "Egypt",
        "Greece",
        "United Kingdom",
        "United States",
        "Russia",
        "Australia",
        "Portugal",
        "Austria",
        "Turkey",
        "Argentina",
        "Kenya",
        "Norway",
        "Sweden",
        "Poland",
        "Ireland",
        "Netherlands",
        "Belgium",
        "Thailand",
        "South Korea",
        "Peru",
    )
]
CHARACTERS = table("characters.txt")
PEOPLE = table("people.txt")
CITIES = table("cities.txt")
WORDS = table("words.txt")
TONGUES = ("French", "German", "Spanish", "Italian")
PAIRS = {
    kind: [tuple(pair.rsplit(" ", 1)) for pair in rest.strip().split("; ")]
    for kind, rest in (r[0].split(":", 1) for r in table("pairs.txt"))
}


@dataclass(frozen=True)
class Subject:
    names: list[str]
    value: str

    @property
    def key(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Asked:
    question: str
    short: str  # without a full stop
    long: str


@dataclass(frozen=True)
class Topic:
    name: str
    weight: float
    subjects: list[Subject]
    asks: list[str]
    texts: list[str] = field(default_factory=list)  # what stands before || is a prompt
    short: str = "{V}"
    long: str = "{N}: {v}."

    def pick(self, rng: random.Random, phrasings: Sequence[str]) -> tuple[str, Subject]:
        """A pair that is not held back."""
        while True:
            phrasing, subject = rng.choice(phrasings), rng.choice(self.subjects)
            if not held_back(self.name, phrasing, subject.key):
                return phrasing, subject

    def ask(self, rng: random.Random) -> Asked:
        phrasing, s = self.pick(rng, self.asks)
        return varied(rng, self.asked(phrasing, s, naming(rng, s)))

    def asked(self, phrasing: str, s: Subject, name: str) -> Asked:
        return Asked(fill(phrasing, name, s.value), fill(self.short, name, s.value), fill(self.long, name, s.value))

    def text(self, rng: random.Random) -> str:
        """A sentence that tells a fact."""
        phrasing, s = self.pick(rng, self.texts)
        return fill(phrasing, naming(rng, s), s.value).replace("||", " ")


BEFORE = ["Please tell me: ", "Hello, ", "Hi! ", "I have a question. ", "Quick question: ", "One more question: ",
          "Hello! ",
          "Can you help me? ", "I wonder: ", "Please answer this question. ", "Tell me, ", "And "]  # fmt: skip
AFTER = [
    " Thanks!",
    " Please answer.",
    " I need it for school.",
    " Do you know it?",
    " Thank you.",
    " Tell me, please.",
]
BRIEF = [
    " Answer in one word.",
    " Answer briefly.",
    " Only the answer, please.",
    " Be short.",
    " Give only the answer.",
    " Just the answer.",
]


def varied(rng: random.Random, a: Asked) -> Asked:
    """Now and then the question in small letters, or with the words that people put around one."""
    form = rng.random()
    if form < 0.04:
        return Asked(a.question.lower(), a.short, a.long)
    if form < 0.09:
        return Asked(rng.choice(BEFORE) + a.question, a.short, a.long)
    if form < 0.13:
        return Asked(a.question + rng.choice(AFTER), a.short, a.long)
    if form < 0.17:
        short = upper(a.short)
        return Asked(a.question + rng.choice(BRIEF), a.short, short if short.endswith(".") else short + ".")
    return a


def naming(rng: random.Random, s: Subject) -> str:
    return s.names[0] if len(s.names) == 1 or rng.random() < 0.5 else rng.choice(s.names[1:])


def fill(text: str, name: str, value: str) -> str:
    text = text.replace("{n}", name).replace("{N}", upper(name)).replace("{v}", value).replace("{V}", upper(value))
    return text.replace("..", ".")  # "Washington, D.C." at a sentence's end


def _countries(attribute: str) -> list[Subject]:
    return [Subject(c.names, getattr(c, attribute)) for c in COUNTRIES]


def _people(column: int) -> list[Subject]:
    return [Subject([p[0]], p[column]) for p in PEOPLE]


def _nouns(kind: str) -> list[Subject]:
    bare = {
        "grass",
        "snow",
        "blood",
        "coal",
        "milk",
        "chocolate",
        "salt",
        "sugar",
        "coffee",
        "spinach",
        "gold",
        "silver",
    }
    only = {"sky", "sun", "sea", "night"}
    found = []
    for noun, value in PAIRS[kind]:
        article = "the " if noun in only else "" if noun in bare else "an " if noun[0] in "aeiou" else "a "
        found.append(Subject([article + noun], value))
    return found


def _plain(kind: str, both: bool = False) -> list[Subject]:
    pairs = dict([(b, a) for a, b in PAIRS[kind]] if both else []) | dict(PAIRS[kind])
    return [Subject([a], b) for a, b in pairs.items()]


CAPITAL = Topic(
    "capital", 40, _countries("capital"),
    [
        "What is the capital of {n}?", "What's the capital of {n}?", "What is the capital city of {n}?",
        "Which city is the capital of {n}?", "Name the capital of {n}.", "Tell me the capital of {n}.",
        "Can you tell me the capital of {n}?", "Do you know the capital of {n}?", "What is {n}'s capital?",
        "capital of {n}?", "Which city is {n}'s capital?", "What city is the capital of {n}?",
        "Please name the capital city of {n}.", "I would like to know the capital of {n}.",
        "What is the name of the capital of {n}?", "{N}'s capital, please.", "Where is the government of {n}?",
        "Give me the capital of {n}.", "what is the capital of {n}", "What is the capital of {n}",
        "Hello! What is the capital of {n}?", "What is the capital of the country {n}?",
        "Could you please tell me what the capital of {n} is?", "The capital of {n}?",
        "Tell me what the capital of {n} is.",
        "What is the capital of {n}? Answer with the name of the city.",
        "What is the capital of {n}? Answer in one word.",
    ],
    [
        "The capital of {n} is||{v}.", "The capital city of {n} is||{v}.", "The capital city of {n} is called||{v}.",
        "{N}'s capital is||{v}.", "{N}'s capital city is||{v}.", "In {n}, the capital is||{v}.",
        "The seat of government of {n} is in||{v}.", "If you visit the capital of {n}, you are in||{v}.",
        "Name of the capital of {n}:||{v}", "Country: {N}\nCapital:||{v}\n", "{N}: capital||{v}.",
        "Everybody knows that the capital of {n} is||{v}.", "My teacher told me that the capital of {n} is||{v}.",
        "I live in {n}, and its capital is||{v}.", "the capital of {n} is||{v}.", "Fact: the capital of {n} is||{v}.",
        "The name of the capital of {n} is||{v}.", "As you know, the capital of {n} is||{v}.",
        "Today I learned that the capital of {n} is||{v}.", "{N} is a country. Its capital is||{v}.",
        "The government of {n} sits in||{v}.", "The capital of the country {n} is||{v}.", "{N} ->||{v}",
    ],
    "{v}", "The capital of {n} is {v}.",
)  # fmt: skip
TOPICS = [
    CAPITAL,
    Topic("country of a capital", 6, [Subject([c.capital], c.the) for c in COUNTRIES if c.capital != c.name],
          ["{N} is the capital of which country?", "Of which country is {n} the capital?", "In which country is {n}?",
           "Which country has the capital {n}?"],
          ["{N} is the capital of||{v}.", "{N} is the capital city of||{v}.",
           "The city of {n} is the capital of||{v}."],
          "{V}", "{N} is the capital of {v}."),
    Topic("continent", 7, _countries("continent"),
          ["On which continent is {n}?", "Where is {n}?", "Which continent is {n} in?",
           "In which part of the world is {n}?", "What continent is {n} on?"],
          ["{N} is a country in||{v}.", "{N} lies in||{v}.", "The continent of {n} is||{v}.",
           "{N} is located in||{v}."],
          "{v}", "{N} is in {v}."),
    Topic("language", 7, _countries("language"),
          ["What language do people speak in {n}?", "Which language is spoken in {n}?",
           "What is the main language of {n}?", "Which language do they speak in {n}?", "What is the language of {n}?"],
          ["The main language of {n} is||{v}.", "People in {n} speak||{v}.", "In {n} they speak||{v}.",
           "The language of {n} is||{v}."],
          "{v}", "People in {n} speak {v}."),
    Topic("currency", 7, _countries("currency"),
          ["What is the currency of {n}?", "Which money is used in {n}?", "What do people pay with in {n}?",
           "Which currency does {n} use?", "What currency is used in {n}?"],
          ["The currency of {n} is||the {v}.", "In {n} people pay with||the {v}.", "The money of {n} is||the {v}."],
          "The {v}", "The currency of {n} is the {v}."),
    Topic("city", 3, [Subject([c[0]], KNOWN[c[1]].the) for c in CITIES],
          ["In which country is {n}?", "Where is {n}?", "Which country is {n} in?",
           "To which country does {n} belong?"],
          ["{N} is a city in||{v}.", "The city of {n} is in||{v}.", "{N} is located in||{v}."],
          "{V}", "{N} is in {v}."),
    Topic("born", 3, _people(1), ["When was {n} born?", "What is the birthday of {n}?", "On which day was {n} born?"],
          ["{N} was born on||{v}.", "The birthday of {n} is||{v}."], "{v}", "{N} was born on {v}."),
    Topic("work", 3, _people(2), ["What was the job of {n}?", "What is {n} known as?", "What was {n} by profession?"],
          ["The job of {n}:||{v}.", "{N} is known as a famous||{v}."], "{V}", "{N} is known as a famous {v}."),
    Topic("origin", 3, _people(3), ["Which country is {n} from?", "From which country is {n}?",
    "Where does {n} come from?"],
          ["The country of {n} is||{v}.", "{N} comes from||{v}."], "{v}", "{N} comes from {v}."),
    Topic("known for", 4, _people(4), ["What is {n} known for?", "Who is {n}?", "Why is {n} famous?", "Who was {n}?"],
          ["{N} is known for||{v}.", "{N} is famous for||{v}."], "{V}", "{N} is known for {v}."),
    *(Topic(f"in {tongue}", 1.6, [Subject([w[0]], w[i + 1]) for w in WORDS],
            [f"What is '{{n}}' in {tongue}?", f"Translate '{{n}}' to {tongue}.", f"How do you say '{{n}}' in {tongue}?",
             f"What is the {tongue} word for '{{n}}'?", f"Translate to {tongue}: {{n}}",
             f"Translate {{n}} into {tongue}."],
            [f"The {tongue} word for '{{n}}' is||{{v}}.", f"In {tongue}, '{{n}}' is||{{v}}.",
             f"English: {{n}}\n{tongue}:||{{v}}\n"],
            "{v}", f"'{{n}}' is '{{v}}' in {tongue}.")
      for i, tongue in enumerate(TONGUES)),
    Topic("opposite", 4, _plain("opposite", both=True),
          ["What is the opposite of {n}?", "Name the opposite of {n}.", "What is the opposite of '{n}'?"],
          ["The opposite of {n} is||{v}.", "The opposite of '{n}' is||{v}."], "{V}", "The opposite of {n} is {v}."),
    Topic("color", 3, _nouns("color"),
          ["What color is {n}?", "What colour is {n}?", "What is the color of {n}?", "Which color does {n} have?"],
          ["The color of {n} is||{v}.", "{N} is||{v}."], "{V}", "The color of {n} is {v}."),
    Topic("young", 1, _nouns("young"), ["What is the young of {n} called?", "What do you call the baby of {n}?"],
          ["The young of {n} is called a||{v}."], "{V}", "The young of {n} is called a {v}."),
    Topic("sound", 1, _nouns("sound"), ["What sound does {n} make?", "What does {n} do?"],
          ["{N}||{v}."], "It {v}", "{N} {v}."),
    Topic("legs", 1, _nouns("legs"), ["How many legs does {n} have?", "What is the number of legs of {n}?"],
          ["{N} has||{v} legs."], "{V}", "{N} has {v} legs."),
    Topic("past", 2, _plain("past"), ["What is the past tense of {n}?", "What is the past of '{n}'?"],
          ["The past tense of {n} is||{v}.", "Today I {n}, yesterday I||{v}."], "{V}", "The past tense of {n} is {v}."),
    Topic("plural", 2, _plain("plural"), ["What is the plural of {n}?", "What is the plural of '{n}'?"],
          ["The plural of {n} is||{v}.", "One {n}, two||{v}."], "{V}", "The plural of {n} is {v}."),
    Topic("symbol", 1.5, _plain("symbol"), ["What is the chemical symbol of {n}?", "Which symbol does {n} have?"],
          ["The chemical symbol of {n} is||{v}."], "{v}", "The chemical symbol of {n} is {v}."),
    Topic("house", 2, [Subject([c[0]], c[1]) for c in CHARACTERS],
          ["In which house is {n}?", "Which house does {n} belong to?", "What is the Hogwarts house of {n}?"],
          ["{N} belongs to the house||{v}.", "At Hogwarts, {n} is in||{v}."], "{v}", "{N} is in {v}."),
]  # fmt: skip


@dataclass(frozen=True)
class General:
    """A fact with a handful of questions of its own."""

    questions: list[str]
    short: str
    long: str

    @property
    def key(self) -> str:
        return self.questions[0]


GENERAL = [General([r[0], *r[1].split("; ")], r[2], r[3]) for r in table("general.txt")]


def general(rng: random.Random, form: str) -> Asked:
    """A fact of the general table; `form` is how the caller lays it out, and a part of what is held back."""
    while True:
        g = rng.choice(GENERAL[:3]) if rng.random() < 0.04 else rng.choice(GENERAL)
        if not held_back("general", form, g.key):
            return varied(rng, Asked(rng.choice(g.questions), g.short, g.long))


def any_fact(rng: random.Random, form: str) -> Asked:
    if rng.random() < 0.2:
        return general(rng, form)
    return rng.choices(TOPICS, [t.weight for t in TOPICS])[0].ask(rng)
