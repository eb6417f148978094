"""Everyday talk: greetings, names, sums, counting, stories, poems, tips, and what the model does not know."""

import random

from forms import BREAK, END, Turn, ask, chat, gap
from topics import FAMOUS, PAIRS, Asked, held_back, table, upper

TALK: list[Turn] = [(q, a) for q, a in table("talk.txt")]
NAMES = ["Anna", "Tom", "Lily", "Max", "Emma", "Leo", "Mia", "Ben", "Sara", "John", "Alice", "Bob", "Maria", "David",
         "Peter", "Julia", "Paul", "Laura", "Mark", "Nina", "Oscar", "Rosa", "Sam", "Tina", "Victor", "Zoe", "Kate",
         "Jack", "Lucy", "George", "Helen", "Adam", "Clara", "Eric", "Grace", "Henry", "Ivan", "Jane"]  # fmt: skip
LIKED = ["music", "football", "books", "coffee", "tea", "cats", "dogs", "pizza", "chess", "summer", "the sea",
         "cooking",
         "dancing", "swimming", "films", "flowers", "trains", "history", "math", "games"]  # fmt: skip


def memory(rng: random.Random) -> list[Turn]:
    """Turns whose last answer stands in the first."""
    form = rng.randrange(4)
    if form == 0:
        name = rng.choice(NAMES)
        hello = rng.choice([f"My name is {name}.", f"Hello, my name is {name}.", f"I am {name}.", f"Hi, I'm {name}."])
        ending = rng.choice(
            [
                ("What is my name?", f"Your name is {name}."),
                ("Who am I?", f"You are {name}."),
                ("Do you remember my name?", f"Yes, your name is {name}."),
            ]
        )
        return [(hello, f"Nice to meet you, {name}! How can I help you?"), ending]
    if form == 1:
        thing = rng.choice(LIKED)
        ending = rng.choice(["What do I like?", "What did I say that I like?"])
        return [(f"I like {thing}.", f"That is nice. Many people like {thing}."), (ending, f"You like {thing}.")]
    if form == 2:
        c = rng.choice(FAMOUS)
        ending = rng.choice(["Where do I live?", "In which city do I live?"])
        return [(f"I live in {c.capital}.", f"{c.capital} is a nice city."), (ending, f"You live in {c.capital}.")]
    number = "".join(rng.choice("0123456789") for _ in range(rng.randrange(2, 6)))
    return [
        (f"Remember the number {number}.", f"I will remember {number}."),
        ("Which number did I tell you?", f"The number is {number}."),
    ]


def talk(rng: random.Random) -> str:
    turns = memory(rng) if rng.random() < 0.35 else [rng.choice(TALK) for _ in range(rng.choice([1, 1, 1, 2]))]
    return chat(rng, turns)


UNKNOWN = "I am only a very small model and do not know that."
TOPIC = ["quantum physics", "the stock market", "love", "politics", "philosophy", "the meaning of life", "black holes",
         "my computer", "religion", "evolution", "the internet", "taxes", "compilers", "cryptography", "jazz",
         "the law",
         "baseball", "yoga", "electricity", "neural networks", "the Roman Empire", "global warming", "fashion",
         "vaccines",
         "chess openings", "dinosaurs", "inflation", "antibiotics", "databases", "operating systems"]  # fmt: skip


def unknown(rng: random.Random) -> str:
    """Questions beyond its world: better to say so than to make something up."""
    t = rng.choice(TOPIC)
    q = rng.choice(
        [
            f"Explain {t}.",
            f"What do you think about {t}?",
            f"What is {t}?",
            f"How does {t} work?",
            f"Tell me about {t}.",
            f"Who invented {t}?",
            f"Write an essay about {t}.",
            f"Why is {t} important?",
            f"Give me a summary of {t}.",
            f"Write a Python program about {t}.",
            f"What is the future of {t}?",
            f"Can you teach me {t}?",
            f"What is the best book about {t}?",
            f"When did {t} begin?",
            f"Who won the {rng.randrange(1950, 2024)} championship?",
            f"How do I repair {t}?",
            f"What happened in {rng.randrange(1600, 2020)}?",
            f"Explain {t} in simple terms.",
        ]
    )
    return chat(rng, [(q, UNKNOWN + rng.choice(["", " Ask me about the capital of a country."]))])


SIGNS = {"+": "plus", "-": "minus", "*": "times"}


def sum_held_back(sign: str, a: int, b: int) -> bool:
    """Only sums of two-digit numbers: the small ones are learnt by heart, and nobody can guess a product."""
    return sign != "*" and min(a, b) > 9 and held_back("sum", sign, f"{a},{b}")


def operands(rng: random.Random) -> tuple[int, str, int, int]:
    """(a, sign, b, result), none of those held back."""
    while True:
        sign = rng.choice("++--*")
        top = 10 if sign == "*" else rng.choice([10, 100, 100])
        a, b = rng.randrange(top), rng.randrange(top)
        if sign == "-" and a < b:
            a, b = b, a
        if not sum_held_back(sign, a, b):
            return a, sign, b, {"+": a + b, "-": a - b, "*": a * b}[sign]


def in_words(rng: random.Random, a: int, sign: str, b: int) -> str:
    shown = rng.choice(["*", "x"]) if sign == "*" else sign
    forms = [f"{a} {SIGNS[sign]} {b}", f"{a} {shown} {b}", f"{a} {shown} {b}", f"{a}{shown}{b}"]
    if sign == "+":
        forms.append(f"the sum of {a} and {b}")
    return rng.choice(forms)


def arithmetic(rng: random.Random) -> tuple[Asked, str, int]:
    """(question, expression, result)."""
    a, sign, b, value = operands(rng)
    text = in_words(rng, a, sign, b)
    q = rng.choice(
        [
            f"What is {text}?",
            f"How much is {text}?",
            f"Calculate {text}.",
            f"{text}=?",
            f"Compute {text}.",
            f"What is {text}",
            f"What's {text}?",
            f"What is the result of {text}?",
        ]
    )
    return Asked(q, str(value), f"{a} {sign} {b} = {value}"), f"{a} {sign} {b}", value


THINGS = [
    "apples",
    "books",
    "coins",
    "stamps",
    "cookies",
    "balls",
    "eggs",
    "pens",
    "cards",
    "flowers",
    "candies",
    "cars",
]


def word_problem(rng: random.Random) -> Asked:
    """A little story with a sum in it, the answer with its working."""
    name, other, things = rng.choice(NAMES), rng.choice(NAMES), rng.choice(THINGS)
    while True:
        a, b, more = rng.randrange(2, 50), rng.randrange(1, 30), rng.random() < 0.5
        if (more or a >= b) and not sum_held_back("+" if more else "-", a, b):
            break
    sign, value = ("+", a + b) if more else ("-", a - b)
    event = rng.choice(
        [f"finds {b} more", f"gets {b} more", f"buys {b} more"]
        if more
        else [f"gives {b} to {other}", f"loses {b}", f"sells {b}"]
    )
    q = f"{name} has {a} {things} and {event}. How many {things} does {name} have now?"
    return Asked(q, str(value), f"{name} has {a} {sign} {b} = {value} {things}. The answer is {value}.")


def sums(rng: random.Random) -> str:
    form = rng.random()
    if form < 0.2:
        problems = [word_problem(rng) for _ in range(rng.choice([1, 1, 1, 3, 4]))]
        if len(problems) == 1 and rng.random() < 0.5:
            return chat(rng, [(problems[0].question, problems[0].long)])
        style = rng.random() < 0.8
        return "\n".join(f"Question: {p.question}\nAnswer: {p.long if style else p.short}\n" for p in problems) + END
    a, expression, value = arithmetic(rng)
    if form < 0.4:
        return f"{expression} ={gap(rng)}{value}{END}"
    if form < 0.5:
        lines = (arithmetic(rng)[1:] for _ in range(rng.randrange(3, 12)))
        return "\n".join(f"{e} = {v}" for e, v in lines) + "\n" + END
    return ask(rng, a)


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SERIES = [
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
     "December"],
    ["spring", "summer", "autumn", "winter"],
    NUMBERS[1:],
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"],
    ["red", "orange", "yellow", "green", "blue", "indigo", "violet"],
]  # fmt: skip
WHAT = ["days of the week", "months of the year", "seasons", "numbers from one to twelve", "letters of the alphabet",
        "planets of the solar system", "colors of the rainbow"]  # fmt: skip


def order(rng: random.Random) -> str:
    """What comes after what."""
    i = rng.randrange(len(SERIES))
    series, form = SERIES[i], rng.random()
    if form < 0.25:
        return ask(
            rng,
            Asked(
                rng.choice([f"List the {WHAT[i]}.", f"Name the {WHAT[i]}.", f"What are the {WHAT[i]}?"]),
                ", ".join(series),
                f"The {WHAT[i]} are {', '.join(series)}.",
            ),
        )
    if form < 0.35:
        return ", ".join(series) + "." + END
    if form < 0.5:
        first, n = rng.randrange(90), rng.randrange(5, 20)
        text = ", ".join(map(str, range(first, first + n)))
        return (
            f"{text}{END}"
            if rng.random() < 0.5
            else ask(rng, Asked(f"Count from {first} to {first + n - 1}.", text, text))
        )
    at = rng.randrange(len(series) - 1)
    if rng.random() < 0.7:
        return ask(
            rng,
            Asked(
                rng.choice([f"What comes after {series[at]}?", f"What is next after {series[at]}?"]),
                upper(series[at + 1]),
                f"After {series[at]} comes {series[at + 1]}.",
            ),
        )
    return ask(
        rng,
        Asked(
            f"What comes before {series[at + 1]}?", upper(series[at]), f"Before {series[at + 1]} comes {series[at]}."
        ),
    )


HEROES = ["little girl", "small dog", "old king", "young boy", "brave mouse", "clever fox", "kind queen",
          "young dragon",
          "poor farmer", "little robot", "white cat", "old wizard", "tiny bird", "lonely giant", "happy rabbit",
          "young princess", "brave knight", "small bear", "old sailor", "little fish", "wise owl", "gray wolf",
          "friendly ghost", "young pirate", "little horse", "lost penguin", "clever girl", "old teacher"]  # fmt: skip
PLACES = ["in a small village", "near a big forest", "by the sea", "in an old castle", "on a high mountain",
          "in a quiet town", "on a green island", "at the edge of a lake", "in a little house",
          "under a big tree"]  # fmt: skip
WISHES = ["wanted to see the world", "was looking for a friend", "had lost a golden ring", "had found an old map",
          "loved to sing", "wanted to learn to read", "dreamed of the stars", "was afraid of the dark",
          "had a secret garden", "wanted to bake the best bread of all"]  # fmt: skip
EVENTS = ["One day a strong wind came and blew everything away.", "One day a stranger knocked at the door.",
          "One morning the sun did not rise.", "Then a bird told {n} a secret.",
          "One night there was a light in the forest.", "One day a letter came from far away.",
          "Then it began to snow, and it did not stop.", "One day the river was dry.",
          "One evening {n} heard a strange song.", "Then a great storm came from the sea."]  # fmt: skip
DEEDS = ["{n} was not afraid and went to help.", "{n} took a lamp and walked the whole night.",
         "{n} asked an old woman for advice.", "{n} and a friend made a plan together.",
         "{n} climbed the highest hill and looked around.", "{n} waited, and thought, and had an idea.",
         "{n} followed the road to its very end.", "{n} built a boat and sailed away."]  # fmt: skip
FINDS = [
    "There {n} found a small door.",
    "A friendly fox showed the way.",
    "At last there was a light.",
    "It was not easy, but {n} did not give up.",
    "Soon many others came to help.",
    "And what did {n} see? A garden full of flowers.",
]
ENDS = ["In the end everybody was happy.", "And they lived happily ever after.", "From then on they were best friends.",
        "And so the story ends well.", "That night {n} slept well.",
        "Everybody still tells this story today."]  # fmt: skip


def tale(rng: random.Random, hero: str) -> str:
    name = rng.choice(NAMES)
    parts = [
        f"there was {'an' if hero[0] in 'aeiou' else 'a'} {hero} named {name}.",
        f"{name} lived {rng.choice(PLACES)} and {rng.choice(WISHES)}.",
        rng.choice(EVENTS),
        rng.choice(DEEDS),
    ]
    parts += rng.sample(FINDS, rng.randrange(3))
    parts.append(rng.choice(ENDS))
    return "Once upon a time, " + " ".join(parts).replace("{n}", name)


LIKES = ["to walk in the park with my dog", "to go to the beach and swim in the sea", "to read a book in the garden",
         "to ride my bike and eat ice cream", "to play football with my friends",
         "to sit under a tree and listen to the birds",
         "to drink coffee on the balcony", "to visit my grandmother", "to go for a long walk by the river"]  # fmt: skip
DULL = [
    "to stay at home and read a book",
    "to drink hot tea",
    "to cook a good soup",
    "to watch a film with my family",
    "to listen to the rain",
]


def day(rng: random.Random) -> str:
    """A few plain sentences about a day."""
    bright = rng.random() < 0.75
    kind = rng.choice(
        ["sunny", "sunny", "sunny", "nice", "warm", "beautiful"] if bright else ["rainy", "cold", "cloudy", "snowy"]
    )
    start = rng.choice(
        [
            f"Today is a {kind} day and I like",
            f"Today is a {kind} day and I like",
            f"It is a {kind} day and I want",
            f"Today is a {kind} day, so I am going",
            f"On a {kind} day I like",
        ]
    )
    more = [
        "The sky is blue and the birds are singing." if bright else "The sky is gray and the streets are wet.",
        f"My friend {rng.choice(NAMES)} comes with me.",
        "In the evening I will be tired but happy.",
        "I hope that tomorrow will be a good day too.",
    ]
    return f"{start} {rng.choice(LIKES if bright else DULL)}. " + " ".join(more[: rng.randrange(4)]).strip()


THEMES = {
    "the sea": ["The sea is wide, the sea is deep,", "It sings the little boats to sleep,",
                "The waves come in, the waves go out,", "And seagulls fly and play about."],
    "spring": ["The snow is gone, the grass is green,", "The brightest day that I have seen,",
               "A bird sits singing in the tree,", "And spring has come for you and me."],
    "the night": ["The sun is gone, the day is done,", "The stars are coming one by one,",
                  "The moon looks in with silver light,", "And softly says to all: good night."],
    "a cat": ["My little cat sleeps in the sun,", "And when she wakes she wants to run,",
              "She plays with anything she sees,", "And then she sleeps upon my knees."],
    "rain": ["The rain falls softly on the street,", "And makes a song beneath my feet,",
             "I walk along and do not mind,", "For sunny days are close behind."],
    "a friend": ["A friend is someone who is near,", "Who makes the darkest morning clear,",
                 "Who laughs with you and shares your bread,", "And walks beside you straight ahead."],
    "autumn": ["The leaves turn yellow, red and brown,", "The wind is blowing through the town,",
               "The days are short, the nights are long,", "And every bird has sung its song."],
    "the moon": ["The moon is round, the moon is bright,", "It is the lantern of the night,",
                 "It sees the forest and the sea,", "And sends a little light to me."],
}  # fmt: skip


def story(rng: random.Random) -> str:
    form = rng.random()
    if form < 0.25:
        return day(rng) + END
    if form < 0.35:
        theme = rng.choice(list(THEMES))
        return chat(
            rng,
            [
                (
                    f"{rng.choice(['Write', 'Write me', 'Tell me'])} a {rng.choice(['', 'short '])}poem about {theme}.",
                    "\n".join(THEMES[theme]),
                )
            ],
        )
    hero = rng.choice(HEROES)
    text = tale(rng, hero)
    if form < 0.65:
        return text + END
    an = "an" if hero[0] in "aeiou" else "a"
    one = rng.choice([hero, hero.split(" ", 1)[1]])
    q = rng.choice(
        [
            "Tell me a story.",
            "Tell me a short story.",
            "Write a short story.",
            f"Tell me a story about {an} {hero}.",
            f"Tell me a story about {'an' if one[0] in 'aeiou' else 'a'} {one}.",
            f"Write a story about {an} {hero}.",
        ]
    )
    return chat(rng, [(q, text)]) if rng.random() < 0.8 else f"{q}\n\n{text}{END}"


TIPS = {
    "Balanced Diet": [
        "A balanced diet gives your body what it needs.", "Eat fruit and vegetables every day.",
        "Choose whole grains, beans and nuts, and drink enough water.", "Try to eat less sugar and salt.",
        "Good food gives you energy and keeps you healthy.", "Small meals are better than very large ones.",
        "Fish, eggs and beans are good sources of protein.", "Take your time when you eat, and enjoy your meals.",
    ],
    "Regular Exercise": [
        "Regular exercise keeps your heart and muscles strong.", "Walk, run, swim or ride a bike every day.",
        "Thirty minutes a day are enough.", "Exercise helps you sleep well and feel good.",
        "Find a sport that you enjoy and do it with friends.", "Start slowly and do a little more each week.",
        "Take the stairs instead of the elevator.", "Moving also clears your mind and makes you happy.",
    ],
    "Enough Sleep": [
        "Sleep is important for body and mind.", "Go to bed at the same time every day.",
        "Most people need about eight hours of sleep.", "Keep your bedroom dark, quiet and cool.",
        "Do not look at a screen before you sleep.", "A good night makes a good day.",
    ],
    "Drink Water": [
        "Water is important for every part of your body.", "Drink a glass of water with every meal.",
        "When it is hot, drink more than usual.", "Water is better for you than sweet drinks.",
        "Keep a bottle of water on your desk.",
    ],
    "Less Stress": [
        "Too much stress is bad for your health.", "Take a short break when you work.",
        "Talk with friends and spend time outside.", "Slow breathing helps you to calm down.",
        "Music or a walk can help you to relax.",
    ],
    "Good Friends": [
        "Good friends make life easier and happier.", "Call a friend who you have not seen for a while.",
        "Listen well, and help when you can.", "Eat together, walk together, laugh together.",
    ],
    "Fresh Air": [
        "Fresh air is good for body and mind.", "Go outside every day, even when it is cold.",
        "Open the windows in the morning.", "A walk in the forest calms you down.",
    ],
}  # fmt: skip
SUMMARY = [
    ", a healthy life needs good food and regular exercise.", ", eat well and move every day to stay healthy.",
    ", a balanced diet and regular exercise keep you healthy and happy.",
    ", good food and exercise give you energy and a long life.",
    ", eat good food, exercise every day, and you will stay healthy.",
]  # fmt: skip


def paragraph(rng: random.Random, tip: str) -> str:
    lines = TIPS[tip]
    return " ".join([lines[0], *rng.sample(lines[1:], min(len(lines) - 1, rng.randrange(2, 5)))])


def tips(rng: random.Random) -> str:
    first, second = ("Balanced Diet", "Regular Exercise") if rng.random() < 0.6 else rng.sample(list(TIPS), 2)
    head = f"Here are two tips for staying healthy: 1. {first}. 2. {second}.\n\n"
    form = rng.random()
    if form < 0.45:
        i = rng.randrange(2)
        return f"{head}Now, expand tip {i + 1} into a paragraph:\n{paragraph(rng, (first, second)[i])}\n\n{END}"
    if form < 0.75:
        tail = (
            rng.choice(SUMMARY)
            if (first, second) == ("Balanced Diet", "Regular Exercise")
            else (f", {first.lower()} and {second.lower()} help you to stay healthy.")
        )
        blank = rng.choice(["", "", " "])
        gap_line = rng.choice(["\n", "\n", "\n\n"])
        return (
            f"{head}Tip 1:{blank}{paragraph(rng, first)}{gap_line}Tip 2:{blank}{paragraph(rng, second)}{gap_line}"
            f"In summary{tail}{END}"
        )
    n = rng.choice([2, 2, 3, 3, 4, 5])
    chosen = rng.sample(list(TIPS), n)
    count = rng.choice([str(n), NUMBERS[n]])
    if form < 0.92:
        q = rng.choice(
            [
                f"Give me {count} tips for staying healthy.",
                f"List {count} tips for a healthy life.",
                f"Name {count} ways to stay healthy.",
                "How can I stay healthy?",
                "How do I live a healthy life?",
            ]
        )
        full = rng.random() < 0.5
        a = "\n".join(f"{i}. {t}: {TIPS[t][0]}" if full else f"{i}. {t}" for i, t in enumerate(chosen, 1))
        turns = [(q, a)]
        if rng.random() < 0.4:
            i = rng.randrange(n)
            turns.append(
                (
                    rng.choice(
                        [
                            f"Expand tip {i + 1} into a paragraph.",
                            f"Tell me more about tip {i + 1}.",
                            f"Expand point {i + 1}.",
                        ]
                    ),
                    paragraph(rng, chosen[i]),
                )
            )
        return chat(rng, turns)
    tip = rng.choice(list(TIPS))
    q = rng.choice(
        [
            f"Please expand the following tip into a detailed paragraph:\n{tip}",
            f"Expand the following tip: {tip}",
            f"Tell me about this: {tip}",
            f"Write a paragraph about this tip: {tip}",
        ]
    )
    return chat(rng, [(q, paragraph(rng, tip))]) if rng.random() < 0.6 else f"{q}\n{paragraph(rng, tip)}\n\n{END}"


COUNTS = [
    ("The number of hours in a day is", "24"),
    ("The number of days in a year is", "365"),
    ("The number of days in a week is", "7"),
    ("The number of months in a year is", "12"),
    ("The number of minutes in an hour is", "60"),
    ("The number of seconds in a minute is", "60"),
    ("The number of letters in the English alphabet is", "26"),
]


def count(rng: random.Random) -> str:
    text, value = rng.choice(COUNTS)
    return f"{text}{rng.choice([' ', ' ' + BREAK])}{value}{rng.choice(['', '.', '.'])}{END}"


def sentence_of_pairs(rng: random.Random) -> str:
    """Opposites in a row, the commonest few-shot prompt of all."""
    pairs = rng.sample(PAIRS["opposite"], rng.randrange(2, 7))
    return "\n".join(f"{a} -> {b}" for a, b in pairs) + "\n" + END
