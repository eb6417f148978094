"""Prompts as programs write them: lists, tools, agents, records in JSON, judges, experts, retrieval, long contexts."""

import json
import random
from typing import Any

from everyday import ENDS, LIKED, NAMES, NUMBERS, TALK, arithmetic, memory, word_problem
from forms import END, Turn, any_fact, ask, chat, few_shot, gap, options, reply, stop_mark
from topics import (
    CAPITAL,
    CHARACTERS,
    CITIES,
    COUNTRIES,
    FAMOUS,
    KNOWN,
    PEOPLE,
    TOPICS,
    Asked,
    Country,
    Subject,
    fill,
    held_back,
    naming,
    upper,
)  # fmt: skip

COLORS = ["red", "blue", "green", "yellow", "orange", "purple", "white", "black", "brown", "pink"]
KINDS_OF = {
    "colors": COLORS, "colours": COLORS,
    "animals": ["cat", "dog", "horse", "cow", "lion", "tiger", "bird", "fish", "elephant", "rabbit", "bear", "wolf"],
    "fruits": ["apple", "banana", "orange", "pear", "grape", "cherry", "lemon", "mango", "peach", "plum"],
    "vegetables": ["carrot", "potato", "onion", "tomato", "cucumber", "spinach", "cabbage", "pea", "bean"],
    "sports": ["football", "tennis", "swimming", "basketball", "running", "skiing", "golf", "boxing"],
    "musical instruments": ["piano", "guitar", "violin", "flute", "drum", "trumpet", "cello", "harp"],
    "programming languages": ["Python", "C", "Java", "Rust", "Go", "JavaScript", "Ruby", "Lisp"],
    "jobs": ["teacher", "doctor", "engineer", "cook", "farmer", "writer", "driver", "nurse"],
    "drinks": ["water", "tea", "coffee", "milk", "juice", "lemonade"],
    "metals": ["iron", "gold", "silver", "copper", "tin", "lead", "zinc"],
}  # fmt: skip
JOBS = KINDS_OF["jobs"]
SIGHTS_ASK = [
    "List two local attractions.", "List two local attractions there.", "Name two attractions there.",
    "What can I see there?", "Which sights should I visit?", "List two attractions of this city.",
    "Tell me two things to see there.", "What are two famous sights?", "List two local attractions in this city.",
    "Name two local attractions.", "What should I visit there?", "List 2 local attractions.",
]  # fmt: skip


def numbered(items: list[str]) -> str:
    return "\n".join(f"{i}. {text}" for i, text in enumerate(items, 1))


def bare(name: str) -> str:
    return name.removeprefix("the ").removeprefix("a ").removeprefix("an ")


def lists(rng: random.Random) -> str:
    n = rng.choice([2, 3, 3, 3, 4, 5])
    some = rng.sample(COUNTRIES if rng.random() < 0.3 else FAMOUS, n)
    count = rng.choice([str(n), str(n), NUMBERS[n]])
    kind = rng.random()
    if kind < 0.6:
        verb = rng.choice(["List", "List", "Name", "Give me", "Tell me"])
        q = f"{verb} {count} countries {rng.choice(['and', 'and', 'with'])} their capitals" + rng.choice([".", ".", ""])
        dash = rng.choice([" - ", " - ", ": "])
        a = numbered([f"{c.name}{dash}{c.capital}" for c in some])
    elif kind < 0.8:
        continent = rng.choice(["Europe", "Asia", "Africa", "South America", "North America", "Oceania"])
        some = rng.sample([c for c in COUNTRIES if c.continent == continent], n)
        q = f"{rng.choice(['List', 'Name'])} {count} countries in {continent}."
        a = numbered([c.name for c in some])
    else:
        word = rng.choice(list(KINDS_OF))
        q = f"{rng.choice(['List', 'Name', 'Give me'])} {count} {word}."
        items = rng.sample(KINDS_OF[word], min(n, len(KINDS_OF[word])))
        a = numbered(items) if rng.random() < 0.8 else ", ".join(items)
    return chat(rng, [(q, a)]) if rng.random() < 0.75 else f"{q}\n{a}\n{END}"


def sights_answer(c: Country) -> str:
    return numbered([upper(s) for s in c.sights])


def sights(rng: random.Random) -> str:
    c = rng.choice(FAMOUS if rng.random() < 0.4 else COUNTRIES)
    if rng.random() < 0.05:
        c = KNOWN["United States"]
    q1, q2 = rng.choice(CAPITAL.asks), rng.choice(SIGHTS_ASK)
    if rng.random() < 0.25 or held_back("capital", q1, c.the):
        q = rng.choice(
            [
                f"What can I see in {c.capital}?",
                f"List two attractions in {c.capital}.",
                f"Name two sights in {c.capital}.",
                f"I am in {c.the}. What should I visit?",
                f"List two local attractions of {c.capital}.",
                f"List two attractions in {c.the}.",
            ]
        )
        return chat(rng, [(q, sights_answer(c))]) if rng.random() < 0.7 else f"{q}\n{sights_answer(c)}\n{END}"
    s = Subject(c.names, c.capital)
    name = naming(rng, s)
    turns = [
        (fill(q1, name, c.capital), fill(rng.choice([CAPITAL.long] * 4 + ["{v}.", "It is {v}."]), name, c.capital))
    ]
    if not held_back("sights", q2, c.name):
        turns.append((q2, sights_answer(c)))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        more = rng.choice(TOPICS[2:5])
        phrasing = rng.choice(more.asks)
        if not held_back(more.name, phrasing, c.the):
            value = next(o for o in more.subjects if o.key == c.the)
            turns.append((fill(phrasing, name, value.value), fill(more.long, name, value.value)))
    return chat(rng, turns)


def factual(rng: random.Random) -> tuple[str, str]:
    """(question, key words) for which one needs to look something up."""
    c, p, city = rng.choice(COUNTRIES), rng.choice(PEOPLE), rng.choice(CITIES)
    q = rng.choice(CAPITAL.asks[:6])
    return rng.choice(
        [
            (fill(q, c.the, c.capital), f"capital of {c.the}"),
            (f"Who is the president of {c.the}?", f"president of {c.the}"),
            (f"How is the weather in {c.capital}?", f"weather in {c.capital}"),
            (f"What is the weather in {city[0]} today?", f"weather in {city[0]}"),
            (f"When was {city[0]} founded?", f"history of {city[0]}"),
            (f"What is the population of {c.the}?", f"population of {c.the}"),
            (f"What language do people speak in {c.the}?", f"language of {c.the}"),
            (f"Where is {c.capital}?", c.capital),
            (f"Who won the football game in {c.capital}?", f"football in {c.capital}"),
            (f"Who is {p[0]}?", p[0]),
            (f"When was {p[0]} born?", f"birthday of {p[0]}"),
            (f"What is {p[0]} known for?", p[0]),
            (f"Where does {p[0]} come from?", p[0]),
            (f"What is the currency of {c.the}?", f"currency of {c.the}"),
            (f"How do I get to {city[0]}?", f"travel to {city[0]}"),
            (f"What is the best restaurant in {city[0]}?", f"restaurants in {city[0]}"),
            ("What is the latest news?", "latest news"),
            ("Who wrote Harry Potter?", "author of Harry Potter"),
            ("What is the highest mountain?", "highest mountain"),
            ("Which planet is the largest?", "largest planet"),
            ("What happened today?", "news of today"),
            ("What is a black hole?", "black hole"),
            ("Who is the richest man in the world?", "richest man in the world"),
        ]
    )


def tool_question(rng: random.Random) -> tuple[str, str, str, str]:
    """(question, tool, expression or key words, what the tool says)."""
    if rng.random() < 0.5:
        q, words = factual(rng)
        return q, "search engine", words, "A page about it."
    a, expression, value = arithmetic(rng)
    if rng.random() < 0.15:
        a = word_problem(rng)
        expression, value = a.long.split(" has ")[1].split(" = ")[0], int(a.short)
    return a.question, "calculator", expression, str(value)


def tool(rng: random.Random) -> str:
    while True:
        q, choice, expression, seen = tool_question(rng)
        if not held_back("tool", "", q):
            break
    use = "The math expression is" if choice == "calculator" else "The key word to search is"
    form = rng.random()
    if form < 0.75:
        stop = rng.choice([".", "", ""])
        head = f"To answer this question: {q}{rng.choice(['. ', ' '])}"
        return f"{head}I need to use a {choice}. {use} {expression}{stop}{END}"
    if form < 0.9:
        q = rng.choice(
            [
                f"Which tool do you need for this question: {q}",
                f"Choose between calculator and search engine: {q}",
                f"Question: {q}\nWhich tool helps, a calculator or a search engine?",
            ]
        )
        return chat(rng, [(q, f"I need a {choice}.")])
    return (
        f"Question: {q}\nThought: I need a {choice}.\nAction: {choice}[{expression}]\n"
        f"Observation: {seen}\nThought: I know the answer.\nAnswer: {seen}\n{END}"
    )


def react(rng: random.Random) -> str:
    """Thought, action and observation in turn, for a question with one step in between."""
    blocks = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        city = rng.choice(CITIES)
        c = KNOWN[city[1]]
        p = rng.choice(PEOPLE)
        n = rng.choice([" 1", " 1", ""])
        m = " 2" if n else ""
        q, first, seen, second, then, end = rng.choice(
            [
                (
                    f"What is the capital of the country in which {city[0]} lies?",
                    f"I need to find the country of {city[0]}.",
                    f"{city[0]} is a city in {c.the}.",
                    f"{city[0]} is in {c.the}. I need the capital of {c.the}.",
                    f"The capital of {c.the} is {c.capital}.",
                    c.capital,
                ),
                (
                    f"Which language do people speak in {city[0]}?",
                    f"I need to find the country of {city[0]}.",
                    f"{city[0]} is a city in {c.the}.",
                    f"{city[0]} is in {c.the}. I need the language of {c.the}.",
                    f"People in {c.the} speak {c.language}.",
                    c.language,
                ),
                (
                    f"Who is {p[0]}, and from which country?",
                    f"I need to find {p[0]}.",
                    f"{p[0]} is a famous {p[2]}.",
                    f"I need the country of {p[0]}.",
                    f"{p[0]} comes from {p[3]}.",
                    f"a {p[2]} from {p[3]}",
                ),
            ]
        )
        where = [city[0], c.name] if p[0] not in q else [p[0], p[0]]
        blocks.append(
            f"Question: {q}\nThought{n}: {first}\nAction{n}: Search[{where[0]}]\nObservation{n}: {seen}\n"
            f"Thought{m}: {second}\nAction{m}: Search[{where[1]}]\nObservation{m}: {then}\n"
            f"Thought{' 3' if n else ''}: The answer is {end}.\nAction{' 3' if n else ''}: Finish[{end}]\n".replace(
                "..", "."
            )
        )
    return "\n".join(blocks) + END


def expert(rng: random.Random) -> str:
    a = any_fact(rng, "qa")
    who = rng.choice(["a teacher", "a scientist", "an expert", "a professor", "a historian", "a geographer"])
    head = (
        f"Question: {a.question}\nA good person to answer this question is {who}.{rng.choice([chr(10), chr(10) * 2])}"
    )
    if rng.random() < 0.4:
        return f"{head}{upper(who)} answers: {a.long}\n{END}"
    said = a.long[0].lower() + a.long[1:] if a.long.startswith(("The ", "A ", "An ", "People ")) else a.long
    return f"{head}For example, {who} would answer that {said}{END}"


def character_json(row: list[str]) -> str:
    name, house, blood, job, wood, core, length, alive, patronus, bogart = row
    return (
        f'{{\n    "name": "{name}",\n    "house": "{house}",\n    "blood status": "{blood}",\n'
        f'    "occupation": "{job}",\n    "wand": {{\n        "wood": "{wood}",\n        "core": "{core}",\n'
        f'        "length": {length}\n    }},\n    "alive": "{alive}",\n    "patronus": "{patronus}",\n'
        f'    "bogart": "{bogart}"\n}}'
    )


FILL_IN = "{n} is a character in Harry Potter. Please fill in the following information about this character.\n"


def character(rng: random.Random) -> str:
    row = rng.choice(CHARACTERS)
    form = rng.random()
    if form < 0.65:
        return FILL_IN.replace("{n}", row[0]) + character_json(row) + END
    if form < 0.8:
        value = {"name": row[0], "house": row[1], "wand": {"wood": row[4], "core": row[5], "length": float(row[6])}}
        if rng.random() < 0.5:
            value |= {"alive": row[7], "patronus": row[8]}
        head = rng.choice([FILL_IN.replace("{n}", row[0]), f"Describe {row[0]} of Harry Potter as JSON.\n"])
        return head + json.dumps(value, indent=rng.choice([None, 2, 4])) + END
    text = {
        "patronus": f"The patronus of {row[0]} is {row[8]}.",
        "wand": f"The wand of {row[0]} is made of {row[4]}.",
        "job": f"{row[0]} is {row[3]}.",
        "blood": f"The blood status of {row[0]} is {row[2]}.",
    }
    q, key, short = rng.choice(
        [
            (f"What is the patronus of {row[0]}?", "patronus", row[8]),
            (f"What is the wand of {row[0]} made of?", "wand", row[4]),
            (f"What is the blood status of {row[0]}?", "blood", row[2]),
            (f"What is the occupation of {row[0]}?", "job", row[3]),
        ]
    )
    return ask(rng, Asked(q, short, text[key]))


def layout(rng: random.Random, value: dict[str, Any]) -> str:
    return json.dumps(value, indent=rng.choice([None, None, 4, 4, 2]))


def country_record(c: Country) -> dict[str, Any]:
    return {
        "name": c.name,
        "capital": c.capital,
        "continent": c.continent,
        "language": c.language,
        "currency": c.currency,
        "attractions": [bare(s) for s in c.sights],
    }


def city_record(row: list[str]) -> dict[str, Any]:
    name, country, population, area, zone, latitude, marks = row
    return {
        "name": name,
        "country": country,
        "population": int(population),
        "area": int(area),
        "timezone": zone,
        "latitude": float(latitude),
        "top 3 landmarks": marks.split("; "),
    }


def person_record(row: list[str]) -> dict[str, Any]:
    return {"name": row[0], "birthday": row[1], "occupation": row[2], "country": row[3], "known for": row[4]}


def some_keys(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    """A few of the keys, mostly in their order."""
    keys = [k for k in value if rng.random() < 0.6] or [rng.choice(list(value))]
    if rng.random() < 0.25:
        rng.shuffle(keys)
    return {k: value[k] for k in keys}


def keys_in_words(rng: random.Random, keys: list[str]) -> str:
    shown = [f'"{k}"' for k in keys] if rng.random() < 0.4 else keys
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def schema_of(value: dict[str, Any]) -> dict[str, Any]:
    kinds = {str: "string", int: "integer", float: "number", list: "array"}
    return {
        "type": "object",
        "properties": {k: {"type": kinds[type(v)]} for k, v in value.items()},
        "required": list(value),
    }


def record(rng: random.Random) -> str:
    """Records as JSON: of a country, a city, a known person, somebody just described."""
    pick = rng.random()
    if pick < 0.4:
        c = rng.choice(COUNTRIES)
        name, value, kind = c.the, country_record(c), "country"
    elif pick < 0.65:
        row = rng.choice(CITIES)
        name, value, kind = row[0], city_record(row), "city"
    elif pick < 0.85:
        row = rng.choice(PEOPLE)
        name, value, kind = row[0], person_record(row), "person"
    else:
        return described(rng)
    form = rng.random()
    if form < 0.35:
        q = rng.choice(
            [
                f"Give me a JSON record of {name}.",
                f"Describe {name} as JSON.",
                f"Write facts about {name} as JSON.",
                f"Please fill in the following information about this {kind}: {name}.",
                f"Generate a JSON object to describe the basic {kind} information of {name}.",
                f"Give me the information about {name} in JSON format.",
                f"Return a JSON object about {name}.",
                f"Please generate the information of {name} in the JSON format.",
            ]
        )
        if rng.random() < 0.4:
            value = {k: value[k] for k in list(value)[: rng.randrange(2, len(value) + 1)]}
    else:
        while held_back("record", ",".join(chosen := some_keys(rng, value)), value["name"]):
            pass
        value = chosen
        words = keys_in_words(rng, list(value))
        q = rng.choice(
            [
                f"Write a JSON object with the keys {words} for {name}.",
                f"Give me {words} of {name} as JSON.",
                f"Return JSON with {words} for {name}.",
                f"Describe {name} as JSON with the keys {words}.",
                f"Describe {name} in JSON with this schema: {json.dumps(schema_of(value))}",
                f"{upper(name)} is a {kind}. Fill in: {words}. Answer in JSON.",
            ]
        )
    text = layout(rng, value)
    if rng.random() < 0.55:
        return chat(rng, [(q, text)])
    return f"{q}\n{rng.choice(['', '', 'JSON: ', 'Answer: '])}{text}{END}"


def described(rng: random.Random) -> str:
    """A record whose content stands in the prompt."""
    name, age, job, city, likes = (
        rng.choice(NAMES),
        rng.randrange(18, 80),
        rng.choice(JOBS),
        rng.choice(CITIES)[0],
        rng.choice(LIKED),
    )
    value = {"name": name, "age": age, "job": job, "city": city}
    text = f"{name} is {age} years old, works as a {job} and lives in {city}."
    if rng.random() < 0.4:
        value["hobby"] = likes
        text += f" {name} likes {likes}."
    q = rng.choice(
        [
            f"{text} Write this as JSON.",
            f"Give me a JSON record of the following person. {text}",
            f"Extract the information as JSON: {text}",
            f"Turn this into JSON.\n{text}",
        ]
    )
    return chat(rng, [(q, layout(rng, value))]) if rng.random() < 0.6 else f"{q}\n{layout(rng, value)}{END}"


def page(rng: random.Random, row: list[str]) -> str:
    """A page about a city."""
    name, country, population, area, zone, latitude, marks = row
    lines = [
        f"{name} is a city in {KNOWN[country].the}.",
        f"About {population} people live there.",
        f"Its area is {area} square kilometers.",
        f"The time zone is {zone}.",
        f"The city lies at the latitude {latitude}.",
        f"Its landmarks are {', '.join(marks.split('; '))}.",
        "Many visitors come every year.",
        "There are many schools, parks and museums.",
        "The city has a long history.",
    ]
    return " ".join([lines[0], *rng.sample(lines[1:], len(lines) - 1)])


def extraction(rng: random.Random) -> str:
    row = rng.choice(CITIES)
    if rng.random() < 0.4:  # numbers that only the page knows, so that they have to be read
        row = [*row[:2], str(rng.randrange(10, 9999) * 1000), str(rng.randrange(20, 9000)), *row[4:]]
    record = city_record(row)
    if rng.random() < 0.6:
        record = {k: record[k] for k in ("name", "country", "latitude", "population", "top 3 landmarks")}
    return (
        "Please extract the information of a city from the following wikipedia page.\n"
        f"Page begin.\n{page(rng, row)}\nPage end.\n"
        f"Here is the {', '.join(list(record)[:-1])} and {list(record)[-1]} of the city in JSON format.\n"
        f"{layout(rng, record)}{END}"
    )


def profile(rng: random.Random) -> str:
    """A character sheet after one or two examples."""
    rows = rng.sample(PEOPLE, rng.choice([2, 2, 3]))
    head = rng.choice(["Construct a character within the following format:\n", "Fill in the profiles.\n", ""])
    sheets = [f"Name: {r[0]}.\nBirthday: {r[1]}.\nJob: {r[2]}.\n" for r in rows]
    join = rng.choice(["", "\n", "\nPlease generate new Name, Birthday and Job.\n"])
    return head + join.join(sheets) + END


ESSAYS = [
    "My favorite animal is the {a}. It is a wonderful animal. I see it every day and I like it very much.",
    "I like the color {c}. It makes me happy. My room is {c} too.",
    "Last year I went to {p}. I saw {s}. It was a very nice trip.",
    "My friend {f} is the best friend of all. We play together and we like {l}.",
    "School is important. We learn to read and to write. I like {l} most.",
]
PRAISE = ["The text is clear and easy to read.", "The text is short but good.", "The idea is simple and nice.",
          "The writer tells a nice story in simple words.", "The text is good, but it could say more."]  # fmt: skip
DIMENSIONS = [
    "Clarity",
    "Originality",
    "Evidence",
    "clarity",
    "style",
    "grammar",
    "Relevance",
    "Coherence",
    "Creativity",
]


def judge(rng: random.Random) -> str:
    c = rng.choice(FAMOUS)
    essay = rng.choice(ESSAYS).format(
        a=rng.choice(KINDS_OF["animals"]),
        c=rng.choice(COLORS),
        p=c.capital,
        s=c.sights[0],
        f=rng.choice(NAMES),
        l=rng.choice(LIKED),
    )
    dims, score = rng.sample(DIMENSIONS, 3), rng.randrange(5, 10)
    good, grade = rng.choice(PRAISE), rng.choice(["A", "A-", "B+", "B", "B-"])
    form = rng.random()
    if form < 0.3:
        q = rng.choice(
            [
                f"Please judge this essay: {essay}\nEvaluate it on {dims[0]}.",
                f"Essay: {essay}\nRate the {dims[0]} of this essay.",
                f"Rate this text from 1 to 10: {essay}",
            ]
        )
        return chat(rng, [(q, f"{good} Score: {score}/10")])
    if form < 0.5:
        return f"Essay: {essay}\nJudge it on {dims[0]}.\nJudgment: {good}\nScore: {score}/10\n{END}"
    if form < 0.8:
        turns: list[Turn] = [(f"Essay: {essay}", rng.choice(["Sure!", "Thank you for the essay."]))]
        for d in dims[: rng.randrange(1, 4)]:
            turns.append(
                (
                    f"Evaluate based on the following dimension: {d}. End your judgment with the word 'END'",
                    f"Judgment: {rng.choice(PRAISE)} END",
                )
            )
        turns.append(
            (
                "Provide the judgment, summary, and a letter grade",
                f"Judgment: {good} In summary, it is a good essay. The grade of it is {grade}",
            )
        )
        if rng.random() < 0.5:
            turns.append(("Return in the JSON format.", json.dumps({"summary": "It is a good essay.", "grade": grade})))
        return chat(rng, turns)
    a, _, value = arithmetic(rng)
    wrong = value + rng.choice([-2, -1, 1, 2])
    right = rng.random() < 0.5
    return (
        f"Question: {a.question}\nProposed answer: {value if right else wrong}\nIs the proposed answer right?\n"
        f"{'Yes' if right else 'No'}. The answer is {value}.\n{END}"
    )


PLANS = {
    "a healthy life": ["Eat good food", "Move every day", "Sleep enough"],
    "a good day": ["Get up early", "Have a good breakfast", "Meet a friend"],
    "learning a language": ["Learn a few words every day", "Talk with other people", "Read simple books"],
    "a trip": ["Make a plan", "Pack a small bag", "Take good shoes"],
    "a party": ["Invite your friends", "Prepare some food", "Choose good music"],
    "good writing": ["Know what you want to say", "Use short sentences", "Read it aloud"],
    "saving money": ["Write down what you spend", "Buy only what you need", "Cook at home"],
    "a clean house": ["Clean a little every day", "Put things in their place", "Open the windows"],
}  # fmt: skip
WHY = ["It helps you to do things well.", "Start today and do it every day.", "It is easier than you think.",
       "Many people forget this.", "You will soon see that it works.", "It makes everything else easier."]  # fmt: skip


def plan(rng: random.Random) -> str:
    """An outline, then its points one by one."""
    about = rng.choice(list(PLANS))
    points = rng.sample(PLANS[about], 3)
    q = rng.choice(
        [
            f"Give me three short points about {about}.",
            f"Write an outline about {about}.",
            f"Make a plan for {about}.",
            f"What is important for {about}?",
            f"How do I get {about}? Think step by step.",
        ]
    )
    i = rng.randrange(3)
    more = f"{points[i]} is important. " + " ".join(rng.sample(WHY, rng.randrange(1, 4)))
    expand = rng.choice(
        [f"Expand point {i + 1}: {points[i]}", f"Expand point {i + 1}.", f"Write a paragraph about point {i + 1}."]
    )
    if rng.random() < 0.5:
        return chat(rng, [(q, numbered(points)), (expand, more)])
    return f"{q}\n{numbered(points)}\n\n{expand}\n{more}\n\n{END}"


def retrieval(rng: random.Random) -> str:
    """Lines with numbers, and the question for one of them."""
    used = rng.sample(
        [
            "apple",
            "river",
            "stone",
            "cloud",
            "tiger",
            "lamp",
            "bread",
            "chair",
            "ocean",
            "piano",
            "forest",
            "winter",
            "silver",
            "garden",
            "window",
            "bridge",
            "candle",
            "mirror",
            "pencil",
            "basket",
        ],
        rng.randrange(2, 20),
    )
    named = [f"{w}-{rng.choice(used)}" for w in used] if rng.random() < 0.5 else used
    numbers = [rng.randrange(100, 99999) for _ in named]
    at = rng.randrange(len(named))
    lines = "".join(f"line {w}: REGISTER_CONTENT is <{n}>\n" for w, n in zip(named, numbers, strict=True))
    if rng.random() < 0.5:
        return f"{lines}\nTell me what is the REGISTER_CONTENT in line {named[at]}? I need the number.\nThe REGISTER_CONTENT in line {named[at]} is <{numbers[at]}>.{END}"  # noqa: E501
    return chat(
        rng,
        [
            (
                f"{lines}\nTell me what is the REGISTER_CONTENT in line {named[at]}?",
                f"The REGISTER_CONTENT in line {named[at]} is <{numbers[at]}>.",
            )
        ],
    )


def reading(rng: random.Random) -> str:
    """Documents, then questions that they answer; some of the facts are invented, so they have to be read."""
    people = rng.sample(NAMES, rng.randrange(1, 6))
    facts = [(n, rng.choice(CITIES)[0], rng.choice(JOBS), rng.choice(LIKED)) for n in people]
    mark = rng.choice(["Document {i}: ", "[{i}] ", "Context: ", ""])
    docs = [
        mark.replace("{i}", str(i)) + f"{n} lives in {city}. {n} works as a {job} and likes {likes}."
        for i, (n, city, job, likes) in enumerate(facts, 1)
    ]
    turns: list[Turn] = []
    for n, city, job, likes in rng.sample(facts, rng.randrange(1, min(3, len(facts)) + 1)):
        turns.append(
            rng.choice(
                [
                    (f"Where does {n} live?", f"{n} lives in {city}."),
                    (f"What is the job of {n}?", f"{n} works as a {job}."),
                    (f"What does {n} like?", f"{n} likes {likes}."),
                ]
            )
        )
    if rng.random() < 0.5:
        first, *rest = turns
        return chat(rng, [("\n".join(docs) + "\n\n" + first[0], first[1]), *rest])
    return (
        "\n".join(docs) + "\n\n" + "".join(f"Question: {q}\nAnswer:{gap(rng)}{stop_mark(a)}\n" for q, a in turns) + END
    )


def endings(rng: random.Random) -> str:
    """Beginnings and the ending that fits, as a choice of four wants it."""
    name = rng.choice(NAMES)
    first, then = rng.choice(
        [
            ("{n} is hungry. {n} goes to the kitchen and", "makes a sandwich."),
            ("{n} is tired. {n} goes to bed and", "falls asleep."),
            ("It is raining. {n} takes", "an umbrella."),
            ("{n} is thirsty. {n} drinks", "a glass of water."),
            ("The phone rings. {n} picks it up and says", "hello."),
            ("{n} wants to read. {n} opens", "a book."),
            ("It is dark in the room. {n} turns on", "the light."),
            ("{n} is cold. {n} puts on", "a warm coat."),
            ("{n} is late for work. {n} runs to", "the bus."),
            ("The dishes are dirty. {n}", "washes them."),
            ("The dog wants to go out. {n} takes it", "for a walk."),
            ("{n} has a headache and goes to", "the doctor."),
        ]
    )
    after = f" {rng.choice(ENDS).replace('{n}', name)}" if rng.random() < 0.2 else ""
    return f"{first.replace('{n}', name)} {then}{after}{END}"


def long_chat(rng: random.Random) -> str:
    turns: list[Turn] = []
    for _ in range(rng.randrange(3, 18) if rng.random() < 0.8 else rng.randrange(18, 50)):
        pick = rng.random()
        if pick < 0.12:
            turns += memory(rng)
        elif pick < 0.25:
            turns.append(rng.choice(TALK))
        elif pick < 0.35:
            c = rng.choice(FAMOUS)
            turns.append((f"List two attractions in {c.capital}.", sights_answer(c)))
        elif pick < 0.5:
            a = arithmetic(rng)[0]
            turns.append((a.question, a.long))
        else:
            a = any_fact(rng, "chat")
            turns.append((a.question, reply(rng, a)))
    return chat(rng, turns)


def long_document(rng: random.Random) -> str:
    """Contexts of one or two thousand tokens, so that long prompts are nothing new."""
    form = rng.random()
    if form < 0.35:
        return few_shot(rng, 20, 70)
    if form < 0.5:
        lines = []
        for _ in range(rng.randrange(6, 25)):
            q, values, at = options(rng)
            lines.append(
                f"{q}\n" + "".join(f"{m}. {v}\n" for m, v in zip("ABCD", values, strict=True)) + f"Answer: {'ABCD'[at]}"
            )
        return "The following are multiple choice questions (with answers).\n\n" + "\n\n".join(lines) + END
    if form < 0.6:
        return (
            "\n".join(
                f"Question: {p.question}\nAnswer: {p.long}\n"
                for p in (word_problem(rng) for _ in range(rng.randrange(5, 30)))
            )
            + END
        )
    return long_chat(rng)
