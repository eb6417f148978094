"""Constraints through a real server: what comes back matches, whatever the model would rather say."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from grammar_patterns import REAL
from live_server import HANG_S

pytestmark = pytest.mark.e2e

TEMPERATURES = (0.0, 1.0, 2.0)
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a", "b"]},
    {"type": "array", "items": {"enum": ["x", "y", 3, None]}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[A-F0-9]{8}$"},
    {"type": "object", "properties": {"at": {"type": "string", "format": "date-time"}}, "required": ["at"]},
    {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "none"}]},
    {
        "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "v": {"type": "integer"}},
                           "required": ["v"], "additionalProperties": False}},
        "$ref": "#/$defs/tree",
    },
]  # fmt: skip


def generate(server: Any, text: str | list[str], params: Any, **more: Any) -> Any:
    response = httpx.post(server.url + "/generate", json={"text": text, "sampling_params": params, **more}, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def check(pattern: str, answer: dict[str, Any], limit: int) -> bool:
    """Whether it came to its end. Cut short it is what fits."""
    meta = answer["meta_info"]
    if meta["finish_reason"]["type"] == "stop":
        assert re.fullmatch(pattern, answer["text"], re.ASCII), (pattern, answer["text"])
        return True
    assert meta["finish_reason"] == {"type": "length", "length": limit}
    assert meta["completion_tokens"] == limit
    return False


def all_match(server: Any, patterns: list[str], limit: int) -> int:
    cases = [(p, t) for p in patterns for t in TEMPERATURES]
    params = [{"regex": p, "temperature": t, "max_new_tokens": limit, "seed": i} for i, (p, t) in enumerate(cases)]
    answers = generate(server, ["Write: "] * len(cases), params)
    return sum(check(p, a, limit) for (p, _), a in zip(cases, answers, strict=True))


def test_the_demo_models_answers_match_patterns_of_real_use(served: Any) -> None:
    assert all_match(served, REAL[::4], 32) > len(REAL) / 8  # most come to an end


def test_a_random_models_answers_match_too(random_served: Any) -> None:
    assert all_match(random_served, REAL[1::3], 32)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
@pytest.mark.parametrize("model", ["served", "random_served"])
def test_all_patterns_are_matched_by_both_models(request: pytest.FixtureRequest, model: str, part: int) -> None:
    assert all_match(request.getfixturevalue(model), REAL[part::6], 100)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_json_validates_against_its_schema(random_served: Any, temperature: float) -> None:
    params = [
        {"json_schema": s if i % 2 else json.dumps(s), "temperature": temperature, "max_new_tokens": 400, "seed": i}
        for i, s in enumerate(SCHEMAS * 2)
    ]
    answers = generate(random_served, ["{"] * len(params), params)
    ended = 0
    for schema, answer in zip(SCHEMAS * 2, answers, strict=True):
        if answer["meta_info"]["finish_reason"]["type"] == "stop":
            jsonschema.validate(json.loads(answer["text"]), schema, format_checker=jsonschema.FormatChecker())
            ended += 1
    assert ended > len(SCHEMAS)


def test_constrained_and_free_rows_share_a_batch_and_do_not_touch_each_other(served: Any) -> None:
    free = {"temperature": 0, "max_new_tokens": 24}
    alone = generate(served, "The capital of France is", free)
    bound = {"regex": r"(yes|no|maybe)( sir)?", "temperature": 1.5, "max_new_tokens": 24, "seed": 1}
    texts = ["The capital of France is", "Are you well? "] * 20
    together = generate(served, texts, [free, bound] * 20)
    assert {a["text"] for a in together[::2]} == {alone["text"]}
    assert all(re.fullmatch(bound["regex"], a["text"]) for a in together[1::2])


def test_every_kind_of_constraint_is_obeyed(served: Any) -> None:
    tag = {"structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}], "triggers": ["<n>"]}
    kinds: list[tuple[dict[str, Any], str]] = [
        ({"choices": ["red", "green", "blue sky"]}, "red|green|blue sky"),
        ({"dtype": "int"}, r"[-+]?[0-9]+"),
        ({"dtype": "bool"}, r"True|False"),
        ({"ebnf": 'root ::= "a" root "b" | "ab"'}, r"a+b+"),
        ({"ebnf": 'start: "x" | "y" start'}, r"y*x"),
        ({"json_schema": {"type": "array", "items": {"type": "integer"}}, "compact_json": True}, r"\[[-0-9,]*\]"),
        ({"structural_tag": tag, "regex": None}, r"(?s)((?!<n>).)*(<n>-?\d+</n>((?!<n>).)*)*"),
    ]
    params = [{**kind, "temperature": 1, "seed": i, "max_new_tokens": 64} for i, (kind, _) in enumerate(kinds)]
    for (kind, pattern), answer in zip(kinds, generate(served, ["So: "] * len(kinds), params), strict=True):
        if answer["meta_info"]["finish_reason"]["type"] == "stop":
            assert re.fullmatch(pattern, answer["text"]), (kind, answer["text"])


def test_samples_of_one_prompt_and_penalties(served: Any) -> None:
    params = {"regex": "([a-c] ){12}", "n": 8, "seed": 3, "frequency_penalty": 1.5, "repetition_penalty": 1.3,
              "max_new_tokens": 80}  # fmt: skip
    answers = generate(served, "Letters: ", params)
    assert len({a["text"] for a in answers}) > 1
    assert all(re.fullmatch(params["regex"], a["text"]) for a in answers)


def test_a_stream_only_grows_and_ends_with_the_whole_answer(served: Any) -> None:
    pattern = REAL[0] + r"\n[a-z ]{400}"  # so long that its tokens cannot all come together, however busy the machine
    params = {"regex": pattern, "temperature": 0.8, "seed": 5, "max_new_tokens": 900}
    body = {"text": "A wizard: ", "sampling_params": params, "stream": True}
    texts = [""]
    with httpx.stream("POST", served.url + "/generate", json=body, timeout=HANG_S) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                last = json.loads(line[6:])
                assert last["text"].startswith(texts[-1])
                texts.append(last["text"])
    assert len(texts) > 10
    assert re.fullmatch(pattern, texts[-1], re.ASCII)
    whole = generate(served, "A wizard: ", params)
    assert whole["text"] == texts[-1]
    tokens = httpx.post(served.url + "/detokenize", json={"tokens": whole["output_ids"]}, timeout=HANG_S).json()["text"]
    assert tokens == whole["text"]


def test_jumped_tokens_are_counted(served: Any) -> None:
    before = served.metric("sglang:jump_forward_tokens_total")
    pattern = r'\{"first name": "[a-z]{1,8}", "favourite colour": "(red|blue)"\}'
    meta = generate(served, "x", {"regex": pattern, "temperature": 0, "max_new_tokens": 60})["meta_info"]
    jumped = meta["completion_tokens"] - meta["completion_tokens_wo_jump_forward"]
    assert jumped > 5
    assert served.metric("sglang:jump_forward_tokens_total") - before == jumped


def test_without_jumps_the_text_is_the_same_where_the_tokens_are_canonical(
    served: Any, start_server: Any, tmp_path: Path
) -> None:
    """And what this server compiles is on disk behind it."""
    patterns = [
        r'\{"a": [0-9]{1,3}, "b": "(left|right)"\}',
        r"[A-Z][a-z]+ is (big|small)\.",
        r"\d{3}-\d{4}",
        *REAL[::12],
    ]
    params = [{"regex": p, "temperature": 0, "max_new_tokens": 40} for p in patterns]
    texts = ["The capital of France is"] * len(params)
    with start_server("--disable-jump-forward", "--grammar-cache-dir", str(tmp_path / "kept")) as plain:
        answers = generate(plain, texts, params)
    assert len(list((tmp_path / "kept").iterdir())) == len(set(patterns))
    same = 0
    for answer, jumping in zip(answers, generate(served, texts, params), strict=True):
        meta = answer["meta_info"]
        assert meta["completion_tokens"] == meta["completion_tokens_wo_jump_forward"]
        body = {"prompt": answer["text"], "add_special_tokens": False}
        tokens = httpx.post(served.url + "/tokenize", json=body, timeout=HANG_S).json()["tokens"]
        if tokens == answer["output_ids"]:
            assert jumping["text"] == answer["text"]
            same += 1
    assert same


def test_logprobs_are_the_models_own(served: Any) -> None:
    free = generate(served, "The capital of France is", {"max_new_tokens": 1, "temperature": 0},
                    return_logprob=True, top_logprobs_num=3)  # fmt: skip
    bound = generate(served, "The capital of France is", {"max_new_tokens": 1, "temperature": 0, "regex": "[0-9]+"},
                     return_logprob=True, top_logprobs_num=3)  # fmt: skip
    assert bound["meta_info"]["output_top_logprobs"] == free["meta_info"]["output_top_logprobs"]
    assert bound["meta_info"]["output_token_logprobs"][0][0] < free["meta_info"]["output_token_logprobs"][0][0]


@pytest.mark.parametrize(
    ("params", "field", "words"),
    [
        ({"regex": "("}, "regex", "missing )"),
        ({"regex": "((?!a).)*"}, "regex", "look-ahead"),
        ({"regex": "(a{1000}){1000}"}, "regex", "too large"),
        ({"regex": "(.*a.*){20}b(.?c){30}"}, "regex", "too large"),
        ({"regex": "(a|b)*a(a|b){18}"}, "regex", "too large"),
        ({"regex": "(" * 5000 + ")" * 5000}, "regex", "nested"),
        ({"regex": "a" * (5 << 20)}, "regex", "at most"),
        ({"json_schema": json.dumps({"enum": ["x" * (5 << 20)]})}, "json_schema", "at most"),
        ({"json_schema": '{"items": ' * 5000 + "{}" + "}" * 5000}, "json_schema", "nested"),
        ({"json_schema": {"$ref": "#"}}, "json_schema", "$ref"),
        ({"json_schema": "{"}, "json_schema", "JSON"),
        ({"json_schema": {"type": "object", "not": {}}}, "json_schema", "not"),
        ({"ebnf": "root ::= ("}, "ebnf", "ebnf"),
        ({"ebnf": "root ::= " + "(" * 5000 + "a" + ")" * 5000}, "ebnf", "ebnf"),
        ({"structural_tag": {"triggers": []}}, "structural_tag", "structures"),
        ({"regex": "a", "choices": ["b"]}, "choices", "at most one constraint"),
        ({"regex": r"(a)\1"}, "regex", "back-reference"),
    ],
)
def test_what_cannot_be_compiled_is_a_400_that_names_the_field(
    served: Any, params: dict[str, Any], field: str, words: str
) -> None:
    response = httpx.post(served.url + "/generate", json={"text": "x", "sampling_params": params}, timeout=2 * HANG_S)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == f"sampling_params.{field}"
    assert words in error["message"]


def test_others_are_served_while_constraints_are_refused(served: Any) -> None:
    """Bombs are refused one after the other, a second of computing each; others are answered before the last is."""
    refused: list[int] = []

    def ask(i: int) -> None:
        body = {"text": "x", "sampling_params": {"regex": f"(.*a.*){{20}}b(.?c){{30}}{i}"}}
        refused.append(httpx.post(served.url + "/generate", json=body, timeout=2 * HANG_S).status_code)

    def compiling() -> int:
        info = httpx.get(served.url + "/get_server_info", timeout=HANG_S).json()
        return info["internal_states"][0]["compiling"]

    bombs = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
    for bomb in bombs:
        bomb.start()
    deadline = time.monotonic() + HANG_S
    while len(refused) + compiling() < len(bombs):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    generate(served, "a", {"max_new_tokens": 30, "ignore_eos": True})
    assert len(refused) < len(bombs), "all of them were waited for"
    for bomb in bombs:
        bomb.join(2 * HANG_S)
    assert refused == [400] * len(bombs)
