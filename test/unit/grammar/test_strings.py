import datetime
import ipaddress
import json
import random
import re
import uuid
from urllib.parse import urlsplit

import pytest
from grammar_walks import Walker
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.grammar import automaton, regex, strings
from sglang.grammar.language import Repeat


def _duration(text: str) -> bool:
    return bool(re.fullmatch(r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)", text))


def _email(text: str) -> bool:
    name, _, host = text.rpartition("@")
    return 0 < len(name) <= 64 and len(host) <= 253 and all(0 < len(p) < 64 for p in host.split("."))


CHECKS = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uri": lambda t: urlsplit(t).scheme and urlsplit(t).netloc and urlsplit(t).port is not False,
    "duration": _duration,
    "email": _email,
    "hostname": lambda t: len(t) <= 253 and all(0 < len(p) < 64 and p[-1] != "-" for p in t.split(".")),
    "byte": lambda t: __import__("base64").b64decode(t, validate=True) is not None,
    "json-pointer": lambda t: t == "" or t[0] == "/",
}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_what_is_written_for_a_format_is_of_that_format(name: str):
    node = strings.of_format(name)
    assert node is not None
    walker = Walker(automaton.compile(node))
    rng = random.Random(0)
    for _ in range(150):
        text = walker.draw(rng, rng.choice([0, 5, 20, 80]))
        assert CHECKS[name](text) not in (False, ""), text


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2023-04-31", "0000-01-01"]),
        ("time", ["23:59:59Z", "00:00:00.123+01:00"], ["24:00:00Z", "12:60:00Z", "12:00:00"]),
        ("date-time", ["2024-01-02T03:04:05Z"], ["2024-01-02 03:04:05Z"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
        ("ipv4", ["127.0.0.1", "255.255.255.255"], ["256.1.1.1", "1.2.3", "01.2.3.4"]),
        ("ipv6", ["::", "::1", "fe80::1:2", "1:2:3:4:5:6:7:8"], [":::", "1::2::3", "1:2:3:4:5:6:7:8:9"]),
        ("email", ["a.b@example.com"], ["a@b", "@x.org", "a b@c.de"]),
        ("uri", ["https://example.com:80/a?b=c#d"], ["example.com", "http://"]),
    ],
)
def test_formats_know_good_from_bad(name: str, good: list[str], bad: list[str]):
    node = strings.of_format(name)
    assert node is not None
    made = automaton.compile(node)
    assert [t for t in good if not made.matches(t)] == []
    assert [t for t in bad if made.matches(t)] == []


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=12))
def test_any_string_can_be_written_as_json_writes_it(text: str):
    free = automaton.compile(strings.quoted(Repeat(strings.FREE, 0, None)))
    assert free.matches(json.dumps(text))
    assert free.matches(json.dumps(text, ensure_ascii=False))
    counted = automaton.compile(strings.quoted(Repeat(strings.COUNTED, len(text), len(text))))
    assert counted.matches(json.dumps(text, ensure_ascii=False))


def test_written_strings_are_read_by_json_and_counted_right():
    rng = random.Random(0)
    for node, low, high in ((strings.FREE, 0, None), (strings.COUNTED, 3, 5), (strings.CANONICAL, 2, 2)):
        walker = Walker(automaton.compile(strings.quoted(Repeat(node, low, high))))
        for _ in range(200):
            read = json.loads(walker.draw(rng, 40))
            read.encode()  # no lone surrogates
            assert low <= len(read) <= (high or 1000)


@settings(max_examples=100, deadline=None)
@given(st.text('ab"\\\n\x01é😀', max_size=6))
def test_escaping_keeps_a_patterns_meaning(text: str):
    pattern = r'[a"]*\\?(é|\n|\x01)*.?'
    made = automaton.compile(strings.quoted(strings.escaped(regex.parse(pattern))))
    written = json.dumps(text, ensure_ascii=False)
    assert made.matches(written) == bool(re.fullmatch(pattern, text))
