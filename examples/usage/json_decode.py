"""JSON by constraint: a regular expression, and a pydantic model.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/json_decode.py
"""

import os
from enum import StrEnum

from pydantic import BaseModel

import sglang as sgl

character_regex = (
    r"""\{\n"""
    r"""    "name": "[\w\d\s]{1,16}",\n"""
    r"""    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n"""
    r"""    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n"""
    r"""    "occupation": "(student|teacher|auror|ministry of magic|death eater|order of the phoenix)",\n"""
    r"""    "wand": \{\n"""
    r"""        "wood": "[\w\d\s]{1,16}",\n"""
    r"""        "core": "[\w\d\s]{1,16}",\n"""
    r"""        "length": [0-9]{1,2}\.[0-9]{0,2}\n"""
    r"""    \},\n"""
    r"""    "alive": "(Alive|Deceased)",\n"""
    r"""    "patronus": "[\w\d\s]{1,16}",\n"""
    r"""    "bogart": "[\w\d\s]{1,16}"\n"""
    r"""\}"""
)


@sgl.function
def character_gen(s, name):
    s += name + " is a character in Harry Potter. Please fill in the following information about this character.\n"
    s += sgl.gen("json_output", max_tokens=256, regex=character_regex)


class Continent(StrEnum):
    africa = "Africa"
    asia = "Asia"
    europe = "Europe"
    north_america = "North America"
    oceania = "Oceania"
    south_america = "South America"


class Country(BaseModel):
    name: str
    capital: str
    continent: Continent
    attractions: list[str]


@sgl.function
def country_gen(s, name):
    s += sgl.user(f"Write a JSON object with the keys name, capital, continent and attractions for {name}.")
    s += sgl.assistant(sgl.gen("json_output", max_tokens=128, json_schema=Country))


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    print(character_gen.run("Hermione Granger", temperature=0)["json_output"])

    for state in country_gen.run_batch([{"name": name} for name in ("Japan", "Italy", "Peru")], temperature=0):
        print(Country.model_validate_json(state["json_output"]))
