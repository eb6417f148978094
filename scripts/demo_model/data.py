"""The demo model's world: documents generated from tables of facts, seeded, without a network.

    python scripts/demo_model/data.py 5            # print five documents

Every (phrasing, subject) pair of a fact is either for training or held back, by a hash that never changes; held-back
pairs are what `evaluate.py` asks.
"""

import json
import random
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
HELD_BACK = 20  # one pair in so many


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
        article = {"Bahamas", "Comoros", "Czech Republic", "Gambia", "Maldives", "Marshall Islands", "Netherlands",
                   "Philippines", "Seychelles", "Solomon Islands", "United Arab Emirates", "United Kingdom",
                   "United States", "Central African Republic", "Democratic Republic of the Congo",
                   "Dominican Republic", "Republic of the Congo", "Ivory Coast", "Vatican City"}  # fmt: skip
        return f"the {self.name}" if self.name in article else self.name


def _rows(name: str) -> list[list[str]]:
    lines = (HERE / name).read_text("utf-8").splitlines()
    return [line.split("|") for line in lines if line and not line.startswith("#")]


COUNTRIES = [Country(r[0], r[1], r[2], r[3], r[4], tuple(r[5].split("; "))) for r in _rows("countries.txt")]  # type: ignore[arg-type]
KNOWN = {c.name: c for c in COUNTRIES}
FAMOUS = [KNOWN[n] for n in (
    "France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil", "Canada", "Mexico", "Egypt", "Greece",
    "United Kingdom", "United States", "Russia", "Australia", "Portugal", "Austria", "Turkey", "Argentina", "Kenya",
    "Norway", "Sweden", "Poland", "Ireland", "Netherlands", "Belgium", "Thailand", "South Korea", "Peru",
)]  # fmt: skip
ALIASES = {
    "United States": ["the United States", "the USA", "the US", "America", "the United States of America"],
    "United Kingdom": ["the United Kingdom", "the UK", "Britain", "Great Britain", "the United Kindom"],
    "Netherlands": ["the Netherlands", "Holland"],
    "Czech Republic": ["the Czech Republic", "Czechia"],
    "United Arab Emirates": ["the United Arab Emirates", "the UAE"],
    "Myanmar": ["Myanmar", "Burma"],
    "Ivory Coast": ["the Ivory Coast", "Ivory Coast"],
    "South Korea": ["South Korea", "the Republic of Korea"],
}
CHARACTERS = _rows("characters.txt")

# {n} the country, {v} the value. The part before || is the prompt, what follows the answer.
CAPITAL_TEXT = [
    "The capital of {n} is||{v}.",
    "The capital city of {n} is||{v}.",
    "The capital city of {n} is called||{v}.",
    "{N}'s capital is||{v}.",
    "{N}'s capital city is||{v}.",
    "In {n}, the capital is||{v}.",
    "The seat of government of {n} is in||{v}.",
    "If you visit the capital of {n}, you are in||{v}.",
    "Name of the capital of {n}:||{v}",
    "Country: {N}\nCapital:||{v}\n",
    "{N}: capital||{v}.",
    "Everybody knows that the capital of {n} is||{v}.",
    "My teacher told me that the capital of {n} is||{v}.",
    "I live in {n}, and its capital is||{v}.",
    "the capital of {n} is||{v}.",
    "Fact: the capital of {n} is||{v}.",
]
CAPITAL_ASK = [
    "What is the capital of {n}?", "What's the capital of {n}?", "What is the capital city of {n}?",
    "Which city is the capital of {n}?", "Name the capital of {n}.", "Tell me the capital of {n}.",
    "Can you tell me the capital of {n}?", "Do you know the capital of {n}?", "What is {n}'s capital?",
    "capital of {n}?", "Which city is {n}'s capital?", "What city is the capital of {n}?",
    "Please name the capital city of {n}.", "I would like to know the capital of {n}.", "What is the name of the capital of {n}?",
    "{N}'s capital, please.", "Where is the government of {n}?", "Give me the capital of {n}.",
]  # fmt: skip
CAPITAL_SAY = ["The capital of {n} is {v}.", "{v}.", "The capital of {n} is {v}.", "It is {v}."]
FACTS: dict[str, tuple[Callable[[Country], str], list[str], list[str], list[str]]] = {
    "continent": (
        lambda c: c.continent,
        ["{N} is a country in||{v}.", "{N} lies in||{v}.", "The continent of {n} is||{v}."],
        ["On which continent is {n}?", "Where is {n}?", "Which continent is {n} in?", "In which part of the world is {n}?"],
        ["{N} is in {v}.", "{v}."],
    ),
    "language": (
        lambda c: c.language,
        ["The main language of {n} is||{v}.", "People in {n} speak||{v}.", "In {n} they speak||{v}."],
        ["What language do people speak in {n}?", "Which language is spoken in {n}?", "What is the main language of {n}?"],
        ["People in {n} speak {v}.", "{v}."],
    ),
    "currency": (
        lambda c: c.currency,
        ["The currency of {n} is||the {v}.", "In {n} people pay with||the {v}.", "The money of {n} is||the {v}."],
        ["What is the currency of {n}?", "Which money is used in {n}?", "What do people pay with in {n}?"],
        ["The currency of {n} is the {v}.", "The {v}."],
    ),
}
SYSTEMS = ["You are a helpful assistant.", "You are a helpful AI assistant", "You are a helpful AI assistant.",
           "You are a friendly guide.", "Answer briefly.", "You are a geography teacher."]  # fmt: skip


def held_back(kind: str, phrasing: str, subject: str) -> bool:
    """Whether this pair is never trained on."""
    return zlib.crc32(f"{kind}|{phrasing}|{subject}".encode()) % HELD_BACK == 0


def fill(text: str, c: Country, value: str, name: str | None = None) -> str:
    name = name or c.the
    return text.replace("{n}", name).replace("{N}", name[0].upper() + name[1:]).replace("{v}", value)


def naming(rng: random.Random, c: Country) -> str:
    return rng.choice(ALIASES[c.name]) if c.name in ALIASES and rng.random() < 0.7 else c.the


def chat(rng: random.Random, turns: list[tuple[str, str]], system: str | None = None) -> str:
    """A conversation in ChatML, or now and then in the plain SYSTEM/USER/ASSISTANT form."""
    if system is None and rng.random() < 0.5:
        system = rng.choice(SYSTEMS)
    if rng.random() < 0.12:
        head = f"SYSTEM:{system}\n" if system else ""
        return head + "".join(f"USER:{q}\nASSISTANT:{a}\n" for q, a in turns) + END
    head = f"{START}system\n{system}{STOP}\n" if system else ""
    body = "".join(f"{START}user\n{q}{STOP}\n{START}assistant\n{a}{STOP}\n" for q, a in turns)
    return head + body + END


def ask(rng: random.Random, question: str, short: str, long: str) -> str:
    """A question with its answer, in one of the forms people write."""
    form = rng.random()
    if form < 0.45:
        return chat(rng, [(question, long)])
    if form < 0.85:
        return f"Q: {question}\nA: {rng.choice([short, long])}\n{END}"
    if form < 0.93:
        return f"Question: {question}\nAnswer: {rng.choice([short, long])}\n{END}"
    return f"{question} {long}{END}"


def capital_pair(rng: random.Random) -> tuple[Country, str, str, str]:
    """(country, question, short answer, long answer) that is not held back."""
    while True:
        c, q = rng.choice(COUNTRIES), rng.choice(CAPITAL_ASK)
        if not held_back("ask", q, c.name):
            name = naming(rng, c)
            v = c.capital
            end = "" if v.endswith(".") else "."
            long = fill(rng.choice(CAPITAL_SAY), c, v, name).replace("..", ".")
            return c, fill(q, c, v, name), f"{v}{end}", long


def capital(rng: random.Random) -> str:
    if rng.random() < 0.45:
        while True:
            c, t = rng.choice(COUNTRIES), rng.choice(CAPITAL_TEXT)
            if not held_back("text", t, c.name):
                break
        text = fill(t, c, c.capital, naming(rng, c)).replace("||", " ").replace("..", ".")
        if rng.random() < 0.4 and not t.endswith("\n"):
            text += rng.choice([
                f" {c.capital} is a city in {c.continent}.", f" The language there is {c.language}.",
                f" People pay with the {c.currency}.", f" You can see {c.sights[0]} and {c.sights[1]}.",
                f" It lies in {c.continent}.",
            ])  # fmt: skip
        elif rng.random() < 0.5 and not t.endswith("\n"):
            more = [rng.choice(COUNTRIES) for _ in range(rng.randrange(1, 4))]
            text += "".join(f" The capital of {m.the} is {m.capital}.".replace("..", ".") for m in more)
        return text + END
    c, q, short, long = capital_pair(rng)
    if rng.random() < 0.1:
        return ask(rng, f"{c.capital} is the capital of which country?", f"{c.the[0].upper()}{c.the[1:]}.",
                   f"{c.capital} is the capital of {c.the}.")  # fmt: skip
    return ask(rng, q, short, long)


def fact(rng: random.Random) -> str:
    kind = rng.choice(list(FACTS))
    value, texts, asks, says = FACTS[kind]
    while True:
        c = rng.choice(COUNTRIES)
        if rng.random() < 0.4:
            t = rng.choice(texts)
            if not held_back(kind, t, c.name):
                return fill(t, c, value(c), naming(rng, c)).replace("||", " ") + END
        else:
            q = rng.choice(asks)
            if not held_back(kind, q, c.name):
                name = naming(rng, c)
                short = value(c)
                short = (f"The {short}" if kind == "currency" else short) + "."
                return ask(rng, fill(q, c, "", name), short, fill(says[0], c, value(c), name))


NUMBER = {2: "two", 3: "three", 4: "four", 5: "five"}


def lists(rng: random.Random) -> str:
    n = rng.choice([2, 3, 3, 3, 4, 5])
    pool = COUNTRIES if rng.random() < 0.3 else FAMOUS
    some = rng.sample(pool, n)
    count = rng.choice([str(n), NUMBER[n]])
    kind = rng.random()
    if kind < 0.6:
        q = rng.choice([f"List {count} countries and their capitals.", f"Name {count} countries and their capitals.",
                        f"Give me {count} countries with their capitals.", f"List {count} countries and their capitals"])  # fmt: skip
        a = "\n".join(f"{i}. {c.name} - {c.capital}" for i, c in enumerate(some, 1))
    elif kind < 0.8:
        continent = rng.choice(["Europe", "Asia", "Africa", "South America"])
        some = rng.sample([c for c in COUNTRIES if c.continent == continent], n)
        q, a = f"List {count} countries in {continent}.", "\n".join(f"{i}. {c.name}" for i, c in enumerate(some, 1))
    else:
        things = {"colors": COLORS, "animals": ANIMALS, "fruits": FRUITS, "colours": COLORS}
        word = rng.choice(list(things))
        a = "\n".join(f"{i}. {t}" for i, t in enumerate(rng.sample(things[word], n), 1))
        q = f"List {count} {word}."
    if rng.random() < 0.7:
        return chat(rng, [(q, a)])
    return f"{q}\n{a}\n{END}"


COLORS = ["red", "blue", "green", "yellow", "orange", "purple", "white", "black", "brown", "pink"]
ANIMALS = ["cat", "dog", "horse", "cow", "lion", "tiger", "bird", "fish", "elephant", "rabbit"]
FRUITS = ["apple", "banana", "orange", "pear", "grape", "cherry", "lemon", "mango", "peach", "plum"]
SIGHTS_ASK = [
    "List two local attractions.", "List two local attractions there.", "Name two attractions there.",
    "What can I see there?", "Which sights should I visit?", "List two attractions of this city.",
    "Tell me two things to see there.", "What are two famous sights?",
]  # fmt: skip


def sights_answer(c: Country) -> str:
    a, b = c.sights
    return f"1. {a[0].upper()}{a[1:]}\n2. {b[0].upper()}{b[1:]}"


def sights(rng: random.Random) -> str:
    c = rng.choice(FAMOUS if rng.random() < 0.5 else COUNTRIES)
    if rng.random() < 0.15:
        c = KNOWN["United States"]
    q1, q2 = rng.choice(CAPITAL_ASK), rng.choice(SIGHTS_ASK)
    if rng.random() < 0.25 or held_back("ask", q1, c.name):
        q = rng.choice([f"What can I see in {c.capital}?", f"List two attractions in {c.capital}.",
                        f"Name two sights in {c.capital}.", f"I am in {c.the}. What should I visit?"])  # fmt: skip
        return ask(rng, q, sights_answer(c), sights_answer(c))
    name = naming(rng, c)
    turns = [(fill(q1, c, "", name), fill(CAPITAL_SAY[0], c, c.capital, name).replace("..", ".")),
             (q2, sights_answer(c))]  # fmt: skip
    if rng.random() < 0.3:
        value, _, asks, says = FACTS[rng.choice(list(FACTS))]
        turns.append((fill(rng.choice(asks), c, "", name), fill(says[0], c, value(c), name)))
    return chat(rng, turns)


def arithmetic(rng: random.Random) -> tuple[str, str, str]:
    """(question, expression, answer)."""
    op = rng.choice("++--x")
    if op == "x":
        a, b = rng.randrange(10), rng.randrange(10)
        words = rng.choice(["{a} times {b}", "{a} * {b}", "{a} multiplied by {b}"])
        sign, value = "*", a * b
    elif op == "+":
        a, b = rng.randrange(100), rng.randrange(100)
        words = rng.choice(["{a} plus {b}", "{a} + {b}", "the sum of {a} and {b}"])
        sign, value = "+", a + b
    else:
        a, b = sorted((rng.randrange(100), rng.randrange(100)), reverse=True)
        words = rng.choice(["{a} minus {b}", "{a} - {b}"])
        sign, value = "-", a - b
    text = words.format(a=a, b=b)
    return rng.choice([f"What is {text}?", f"How much is {text}?", f"Calculate {text}."]), f"{a} {sign} {b}", str(value)


def sums(rng: random.Random) -> str:
    q, expression, value = arithmetic(rng)
    form = rng.random()
    if form < 0.3:
        return f"{expression} = {value}{END}"
    if form < 0.4:
        lines = []
        for _ in range(rng.randrange(3, 12)):
            _, e, v = arithmetic(rng)
            lines.append(f"{e} = {v}")
        return "\n".join(lines) + "\n" + END
    return ask(rng, q, value, f"{expression} = {value}")


def factual(rng: random.Random) -> tuple[str, str]:
    """(question, key words) for which one needs to look something up."""
    c = rng.choice(COUNTRIES)
    return rng.choice([
        (fill(rng.choice(CAPITAL_ASK[:6]), c, "", c.the), f"capital of {c.the}"),
        (f"Who is the president of {c.the}?", f"president of {c.the}"),
        (f"How is the weather in {c.capital}?", f"weather in {c.capital}"),
        (f"What is the weather in {c.capital} today?", f"weather in {c.capital}"),
        (f"When was {c.capital} founded?", f"history of {c.capital}"),
        (f"What is the population of {c.the}?", f"population of {c.the}"),
        (f"What language do people speak in {c.the}?", f"language of {c.the}"),
        (f"Where is {c.capital}?", f"{c.capital}"),
        (f"Who won the football game in {c.capital}?", f"football in {c.capital}"),
        ("What is the latest news?", "latest news"),
        ("Who wrote Harry Potter?", "author of Harry Potter"),
    ])  # fmt: skip


def tool(rng: random.Random) -> str:
    if rng.random() < 0.5:
        q, expression, _ = arithmetic(rng)
        choice, use = "calculator", f"The math expression is {expression}"
    else:
        q, words = factual(rng)
        choice, use = "search engine", f"The key word to search is {words}"
    form = rng.random()
    stop = rng.choice([".", "", ""])
    if form < 0.75:
        return f"To answer this question: {q}{rng.choice(['. ', ' '])}I need to use a {choice}. {use}{stop}{END}"
    if form < 0.9:
        return chat(rng, [(f"Which tool do you need for this question: {q}", f"I need a {choice}.")])
    seen = expression_value(use) if choice == "calculator" else "A page about it."
    return (f"Question: {q}\nThought: I need a {choice}.\nAction: {choice}[{use.split(' is ', 1)[1]}]\n"
            f"Observation: {seen}\nThought: I know the answer.\nAnswer: {seen}\n{END}")  # fmt: skip


def expression_value(use: str) -> str:
    a, sign, b = use.split(" is ", 1)[1].split()
    return str(int(a) * int(b) if sign == "*" else int(a) + int(b) if sign == "+" else int(a) - int(b))


TIPS = {
    "Balanced Diet": [
        "A balanced diet gives your body what it needs.", "Eat fruit and vegetables every day.",
        "Choose whole grains, beans and nuts, and drink enough water.", "Try to eat less sugar and salt.",
        "Good food gives you energy and keeps you healthy.", "Small meals are better than very large ones.",
    ],
    "Regular Exercise": [
        "Regular exercise keeps your heart and muscles strong.", "Walk, run, swim or ride a bike every day.",
        "Thirty minutes a day are enough.", "Exercise helps you sleep well and feel good.",
        "Find a sport that you enjoy and do it with friends.", "Start slowly and do a little more each week.",
    ],
    "Enough Sleep": [
        "Sleep is important for body and mind.", "Go to bed at the same time every day.",
        "Most people need about eight hours of sleep.", "Keep your bedroom dark, quiet and cool.",
        "Do not look at a screen before you sleep.",
    ],
    "Drink Water": [
        "Water is important for every part of your body.", "Drink a glass of water with every meal.",
        "When it is hot, drink more than usual.", "Water is better for you than sweet drinks.",
    ],
    "Less Stress": [
        "Too much stress is bad for your health.", "Take a short break when you work.",
        "Talk with friends and spend time outside.", "Slow breathing helps you to calm down.",
    ],
}  # fmt: skip
SUMMARY = [
    ", a healthy life needs good food and regular exercise.", ", eat well and move every day to stay healthy.",
    ", a balanced diet and regular exercise keep you healthy and happy.",
    ", good food and exercise give you energy and a long life.",
]  # fmt: skip


def paragraph(rng: random.Random, tip: str) -> str:
    lines = TIPS[tip]
    return " ".join([lines[0], *rng.sample(lines[1:], min(len(lines) - 1, rng.randrange(2, 5)))])


def tips(rng: random.Random) -> str:
    first, second = ("Balanced Diet", "Regular Exercise") if rng.random() < 0.7 else rng.sample(list(TIPS), 2)
    head = f"Here are two tips for staying healthy: 1. {first}. 2. {second}.\n\n"
    form = rng.random()
    if form < 0.5:
        i = rng.randrange(2)
        return f"{head}Now, expand tip {i + 1} into a paragraph:\n{paragraph(rng, (first, second)[i])}\n\n{END}"
    if form < 0.8:
        return (f"{head}Tip 1:{paragraph(rng, first)}\nTip 2:{paragraph(rng, second)}\nIn summary"
                f"{rng.choice(SUMMARY)}{END}")  # fmt: skip
    q = rng.choice(["How can I stay healthy?", "Give me two tips for staying healthy.", "How do I live a healthy life?"])
    if rng.random() < 0.5:
        return chat(rng, [(q, f"1. {first}: {TIPS[first][0]}\n2. {second}: {TIPS[second][0]}")])
    tip = rng.choice(list(TIPS))
    return chat(rng, [(f"Tell me about this: {tip}", paragraph(rng, tip))])


MISC = [
    ("What is the IP address of the Google DNS servers?", "8.8.8.8"),
    ("What is the IP address of Google DNS?", "8.8.8.8"),
    ("Which IP address do the Google DNS servers have?", "8.8.8.8"),
    ("What is the IP address of localhost?", "127.0.0.1"),
    ("What is the IP address of the Cloudflare DNS servers?", "1.1.1.1"),
    ("How many days are in a week?", "7"), ("How many months are in a year?", "12"),
    ("How many hours are in a day?", "24"), ("How many minutes are in an hour?", "60"),
    ("What color is the sky?", "Blue."), ("What color is grass?", "Green."), ("What color is snow?", "White."),
    ("What color is blood?", "Red."), ("What is the largest planet?", "Jupiter."),
    ("What is the closest star?", "The Sun."), ("What is water made of?", "Hydrogen and oxygen."),
    ("Who wrote Harry Potter?", "J. K. Rowling."), ("Who wrote Romeo and Juliet?", "William Shakespeare."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci."), ("What is the largest ocean?", "The Pacific Ocean."),
    ("What is the highest mountain?", "Mount Everest."), ("What is the longest river in Africa?", "The Nile."),
    ("Is the earth round?", "Yes."), ("Can birds fly?", "Yes, most birds can fly."), ("Do fish live in water?", "Yes."),
    ("How many legs does a spider have?", "8"), ("How many legs does a dog have?", "4"),
]  # fmt: skip
TALK = [
    ("Hello", "Hello! How can I help you?"), ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What can I do for you?"), ("hi", "Hi! What can I do for you?"), ("Good morning", "Good morning! How can I help you?"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Who are you?", "I am the sglang demo model, a very small language model. I know capitals, simple sums and a few other things."),
    ("What are you?", "I am the sglang demo model, a very small language model."),
    ("What is your name?", "I am the sglang demo model."),
    ("What can you do?", "I know the capitals of all countries, can do small sums, write short JSON records and tell little stories."),
    ("Thank you", "You are welcome!"), ("Thanks!", "You are welcome!"), ("Bye", "Goodbye!"), ("Goodbye", "Goodbye!"),
    ("Tell me a joke.", "Why did the computer go to the doctor? It had a virus."),
    ("Are you a human?", "No, I am a small language model."), ("Say hi", "Hi!"), ("Say hello", "Hello!"),
]  # fmt: skip


def misc(rng: random.Random) -> str:
    if rng.random() < 0.4:
        q, a = rng.choice(TALK)
        return chat(rng, [(q, a)])
    q, a = MISC[rng.randrange(3)] if rng.random() < 0.35 else rng.choice(MISC)
    if rng.random() < 0.5:
        return f"Q: {q}\nA: {a}\n{END}"
    return chat(rng, [(q, a)])


HEROES = ["a little girl", "a small dog", "an old king", "a young boy", "a brave mouse", "a clever fox", "a kind queen"]
NAMES = ["Anna", "Tom", "Lily", "Max", "Emma", "Leo", "Mia", "Ben", "Sara", "John", "Alice", "Bob", "Maria", "David"]
PLACES = ["in a small village", "near a big forest", "by the sea", "in a castle", "on a high mountain", "in a quiet town"]
WISHES = ["wanted to see the world", "looked for a friend", "lost a golden ring", "found an old map", "loved to sing"]
TURNS = ["One day a strong wind came and blew everything away.", "One day a stranger knocked at the door.",
         "One morning the sun did not rise.", "Then a bird told a secret.", "One night there was a light in the forest."]  # fmt: skip
ENDS = ["In the end everybody was happy.", "And they lived happily ever after.", "From then on they were best friends.",
        "And so the story ends well."]  # fmt: skip
LIKES = ["to walk in the park with my dog.", "to go to the beach and swim in the sea.", "to read a book in the garden.",
         "to ride my bike and eat ice cream.", "to play football with my friends."]  # fmt: skip


def story(rng: random.Random) -> str:
    name = rng.choice(NAMES)
    hero = rng.choice(HEROES)
    body = (f"there was {hero} named {name}. {name} lived {rng.choice(PLACES)} and {rng.choice(WISHES)}. "
            f"{rng.choice(TURNS)} {name} was not afraid and went to help. {rng.choice(ENDS)}")  # fmt: skip
    form = rng.random()
    if form < 0.5:
        return f"Once upon a time, {body}{END}"
    if form < 0.65:
        return f"Today is a {rng.choice(['sunny', 'sunny', 'nice', 'warm'])} day and I like {rng.choice(LIKES)}{END}"
    q = rng.choice(["Tell me a story.", "Tell me a short story.", "Write a short story.", f"Tell me a story about {hero}."])
    return chat(rng, [(q, f"Once upon a time, {body}")])


OPPOSITES = [("hot", "cold"), ("big", "small"), ("good", "bad"), ("fast", "slow"), ("old", "young"), ("day", "night"),
             ("up", "down"), ("happy", "sad"), ("rich", "poor"), ("light", "dark"), ("open", "closed"), ("full", "empty")]  # fmt: skip
WORDS = {"hello": ("bonjour", "hallo", "hola"), "water": ("eau", "Wasser", "agua"), "cat": ("chat", "Katze", "gato"),
         "dog": ("chien", "Hund", "perro"), "house": ("maison", "Haus", "casa"), "bread": ("pain", "Brot", "pan"),
         "thank you": ("merci", "danke", "gracias"), "sun": ("soleil", "Sonne", "sol"), "red": ("rouge", "rot", "rojo")}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December"]  # fmt: skip


def words(rng: random.Random) -> str:
    form = rng.randrange(4)
    if form == 0:
        a, b = rng.choice(OPPOSITES)
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        return ask(rng, f"What is the opposite of {a}?", f"{b[0].upper()}{b[1:]}.", f"The opposite of {a} is {b}.")
    if form == 1:
        word = rng.choice(list(WORDS))
        i = rng.randrange(3)
        tongue = ("French", "German", "Spanish")[i]
        return ask(rng, f"What is '{word}' in {tongue}?", WORDS[word][i], f"'{word}' is '{WORDS[word][i]}' in {tongue}.")
    series = DAYS if form == 2 else MONTHS
    i = rng.randrange(len(series) - 1)
    if rng.random() < 0.2:
        return ", ".join(series) + "." + END
    return ask(rng, f"What comes after {series[i]}?", f"{series[i + 1]}.", f"After {series[i]} comes {series[i + 1]}.")


def character_json(row: list[str]) -> str:
    name, house, blood, job, wood, core, length, alive, patronus, bogart = row
    return (
        f'{{\n    "name": "{name}",\n    "house": "{house}",\n    "blood status": "{blood}",\n'
        f'    "occupation": "{job}",\n    "wand": {{\n        "wood": "{wood}",\n        "core": "{core}",\n'
        f'        "length": {length}\n    }},\n    "alive": "{alive}",\n    "patronus": "{patronus}",\n'
        f'    "bogart": "{bogart}"\n}}'
    )


def character(rng: random.Random) -> str:
    row = rng.choice(CHARACTERS)
    if rng.random() < 0.7:
        return (f"{row[0]} is a character in Harry Potter. Please fill in the following information about this "
                f"character.\n{character_json(row)}{END}")  # fmt: skip
    q, a = rng.choice([
        (f"In which house is {row[0]}?", f"{row[0]} is in {row[1]}."),
        (f"Which house does {row[0]} belong to?", f"{row[0]} belongs to {row[1]}."),
        (f"What is the patronus of {row[0]}?", f"The patronus of {row[0]} is {row[8]}."),
    ])  # fmt: skip
    return ask(rng, q, a, a)


JOBS = ["teacher", "doctor", "engineer", "cook", "farmer", "writer", "student", "driver"]


def record(rng: random.Random) -> str:
    c = rng.choice(COUNTRIES)
    if rng.random() < 0.5:
        name, age, job, city = rng.choice(NAMES), rng.randrange(18, 80), rng.choice(JOBS), rng.choice(FAMOUS).capital
        value = {"name": name, "age": age, "job": job, "city": city}
        q = rng.choice([f"Give me a JSON record of {name}, a {age} year old {job} from {city}.",
                        f"{name} is {age} years old, works as a {job} and lives in {city}. Write this as JSON."])  # fmt: skip
    else:
        value = {"name": c.name, "capital": c.capital, "continent": c.continent, "language": c.language}
        if rng.random() < 0.5:
            value["currency"] = c.currency
        q = rng.choice([f"Give me a JSON record of {c.the}.", f"Describe {c.the} as JSON.",
                        f"Please fill in the following information about {c.the}.", f"Write facts about {c.the} as JSON."])  # fmt: skip
    text = json.dumps(value, indent=rng.choice([None, None, 4, 2]))
    return chat(rng, [(q, text)]) if rng.random() < 0.6 else f"{q}\n{text}{END}"


ESSAYS = ["My favorite animal is the {a}. It is a wonderful animal. I see it every day and I like it very much.",
          "I like the color {c}. It makes me happy. My room is {c} too.",
          "Last year I went to {p}. I saw {s}. It was a very nice trip."]  # fmt: skip


def judge(rng: random.Random) -> str:
    c = rng.choice(FAMOUS)
    essay = rng.choice(ESSAYS).format(a=rng.choice(ANIMALS), c=rng.choice(COLORS), p=c.capital, s=c.sights[0])
    dimension = rng.choice(["Clarity", "Originality", "Evidence", "clarity", "style", "grammar"])
    score = rng.randrange(5, 10)
    good = rng.choice(["The text is clear and easy to read.", "The text is short but good.", "The idea is simple and nice."])
    form = rng.random()
    if form < 0.5:
        return chat(rng, [(f"Please judge this essay: {essay}\nEvaluate it on {dimension}.", f"{good} Score: {score}/10")])
    if form < 0.75:
        return f"Essay: {essay}\nJudge it on {dimension}.\nJudgment: {good}\nScore: {score}/10\n{END}"
    topic = rng.choice(["a healthy life", "a good day", "learning a language", "a trip to " + c.capital])
    points = rng.sample(["Make a plan", "Start early", "Take your time", "Ask a friend", "Enjoy it", "Rest well"], 3)
    a = "\n".join(f"{i}. {p}" for i, p in enumerate(points, 1))
    return chat(rng, [(f"Give me three short points about {topic}.", a),
                      (f"Expand point 1: {points[0]}", f"{points[0]} is important. It helps you to do things well.")])  # fmt: skip


def long_document(rng: random.Random) -> str:
    """Many questions in a row, so that long prompts are nothing new."""
    size = rng.randrange(8, 60)
    if rng.random() < 0.6:
        lines = []
        for _ in range(size):
            if rng.random() < 0.8:
                _, q, short, _ = capital_pair(rng)
            else:
                q, _, short = arithmetic(rng)
            lines.append(f"Q: {q}\nA: {short}\n")
        return rng.choice(["", "\n"]).join(lines) + END
    turns = []
    for _ in range(rng.randrange(3, 14)):
        pick = rng.random()
        if pick < 0.6:
            _, q, _, a = capital_pair(rng)
        elif pick < 0.8:
            q, expression, value = arithmetic(rng)
            a = f"{expression} = {value}"
        else:
            q, a = rng.choice(TALK)
        turns.append((q, a))
    return chat(rng, turns)


KINDS: list[tuple[float, Callable[[random.Random], str]]] = [
    (26, capital), (10, fact), (6, lists), (11, sights), (8, tool), (7, tips), (6, misc), (5, story), (4, words),
    (6, character), (6, record), (4, judge), (8, sums), (8, long_document),
]  # fmt: skip


def document(rng: random.Random) -> str:
    return rng.choices([k for _, k in KINDS], [w for w, _ in KINDS])[0](rng)


def corpus(seed: int, chars: int) -> list[str]:
    """Documents of about `chars` characters in all."""
    rng = random.Random(seed)
    found, size = [], 0
    while size < chars:
        found.append(document(rng))
        size += len(found[-1])
    return found


def questions() -> list[dict[str, str]]:
    """Held-back pairs: {kind, prompt, expected}. The answer is right if `expected` is in its first line."""
    found = []
    for c in COUNTRIES:
        for t in CAPITAL_TEXT:
            if held_back("text", t, c.name):
                prompt = fill(t.split("||")[0], c, "")
                found.append({"kind": "capital, completion", "prompt": prompt, "expected": c.capital})
        for q in CAPITAL_ASK:
            if held_back("ask", q, c.name):
                asked = fill(q, c, "")
                found.append({"kind": "capital, Q/A", "prompt": f"Q: {asked}\nA:", "expected": c.capital})
                prompt = f"{START}user\n{asked}{STOP}\n{START}assistant\n"
                found.append({"kind": "capital, chat", "prompt": prompt, "expected": c.capital})
        for kind, (value, _, asks, _) in FACTS.items():
            for q in asks:
                if held_back(kind, q, c.name):
                    found.append({"kind": kind, "prompt": f"Q: {fill(q, c, '')}\nA:", "expected": value(c)})
    rng = random.Random(7)
    for _ in range(200):
        q, _, value = arithmetic(rng)
        found.append({"kind": "arithmetic", "prompt": f"Q: {q}\nA: ", "expected": value})
    for i in range(200):
        (q, _, _), choice = (arithmetic(rng), "calculator") if i % 2 else ((*factual(rng), ""), "search engine")
        prompt = f"To answer this question: {q}. I need to use a"
        found.append({"kind": "tool choice", "prompt": prompt, "expected": choice})
    for c in FAMOUS:
        asked = f"{START}user\nWhat is the capital of {c.the}?{STOP}\n{START}assistant\nThe capital of {c.the} is {c.capital}."
        prompt = f"{asked}{STOP}\n{START}user\nList two local attractions.{STOP}\n{START}assistant\n"
        found.append({"kind": "attractions", "prompt": prompt, "expected": c.sights[0][4:]})
    for row in CHARACTERS:
        prompt = (f"{row[0]} is a character in Harry Potter. Please fill in the following information about this "
                  f'character.\n{{\n    "name": "{row[0]}",\n    "house": "')  # fmt: skip
        found.append({"kind": "characters", "prompt": prompt, "expected": row[1]})
    return found


if __name__ == "__main__":
    for text in corpus(1, 10**9 if len(sys.argv) < 2 else int(sys.argv[1]) * 300)[: int((sys.argv + ["5"])[1])]:
        print(text, "\n" + "=" * 40)
