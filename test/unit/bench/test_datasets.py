"""Prompts: exact lengths, one seed one set, prefixes that are really shared, a ShareGPT file read as it should be."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from sglang.base.config import DEMO_MODEL
from sglang.bench.datasets import DataError, random_jobs, shared_prefix_jobs, sharegpt_jobs
from sglang.bench.load import arrivals
from sglang.bench.tokens import LocalTokens
from sglang.text import tokenizer


@pytest.fixture(scope="module")
def tokens() -> LocalTokens:
    return LocalTokens(tokenizer.load(str(DEMO_MODEL)))


def test_random_prompts_have_exactly_the_lengths_asked_for(tokens: LocalTokens):
    jobs = random_jobs(tokens, 20, 37, 11, 1.0, seed=1, as_text=False)
    assert [(len(job.prompt), job.input_tokens, job.output_tokens) for job in jobs] == [(37, 37, 11)] * 20
    assert not tokens.tokenizer.special_ids & {token for job in jobs for token in job.prompt}


def test_texts_encode_to_exactly_the_lengths_asked_for(tokens: LocalTokens):
    jobs = random_jobs(tokens, 50, 100, 5, 0.1, seed=3, as_text=True)
    lengths = [len(tokens.tokenizer.encode(str(job.prompt), add_special_tokens=False)) for job in jobs]
    assert lengths == [job.input_tokens for job in jobs]
    assert len(set(lengths)) > 10


def test_lengths_fill_their_range_and_no_more(tokens: LocalTokens):
    jobs = random_jobs(tokens, 400, 8, 4, 0.5, seed=0, as_text=False)
    assert {job.input_tokens for job in jobs} == {4, 5, 6, 7, 8}
    assert {job.output_tokens for job in jobs} == {2, 3, 4}
    assert min(job.output_tokens for job in random_jobs(tokens, 50, 2, 2, 0.0, seed=0, as_text=False)) == 1


@pytest.mark.parametrize("as_text", [False, True])
def test_a_seed_is_a_set_of_prompts(tokens: LocalTokens, as_text: bool):
    def make(seed: int):
        return random_jobs(tokens, 5, 30, 5, 0.5, seed, as_text)

    assert make(1) == make(1)
    assert make(1) != make(2)


@pytest.mark.parametrize("as_text", [False, True])
def test_prompts_of_a_group_share_their_prefix_and_groups_do_not(tokens: LocalTokens, as_text: bool):
    jobs = shared_prefix_jobs(tokens, 3, 4, 40, 10, 7, seed=0, as_text=as_text)
    assert sorted(job.group for job in jobs) == [0] * 4 + [1] * 4 + [2] * 4
    assert [job.group for job in jobs] != sorted(job.group for job in jobs), "groups come mixed"
    assert {(job.input_tokens, job.output_tokens) for job in jobs} == {(50, 7)}
    ids = [tokens.tokenizer.encode(p, False) if isinstance(p := job.prompt, str) else p for job in jobs]
    assert {len(prompt) for prompt in ids} == {50}
    # As text, the token at the seam may be another one, joined with what follows.
    heads = {(job.group, tuple(prompt[: 38 if as_text else 40])) for job, prompt in zip(jobs, ids, strict=True)}
    assert len(heads) == 3
    assert len({tuple(prompt) for prompt in ids}) == 12


def write_sharegpt(path: Path, conversations: list[list[str]]) -> Path:
    turns = [{"conversations": [{"from": "x", "value": value} for value in values]} for values in conversations]
    path.write_text(json.dumps(turns))
    return path


def test_sharegpt_keeps_what_has_a_usable_length(tokens: LocalTokens, tmp_path: Path):
    good = "What is the capital of France, and why?", "The capital of France is Paris."
    long = "word " * 3000
    too_short = [["alone is not enough"], ["Hi", good[1]], [good[0], "a"]]
    too_long = [[long, good[1]], [good[1], long]]
    path = write_sharegpt(tmp_path / "s.json", [[*good], *too_short, *too_long, [good[1], good[0], "more"]])
    jobs = sharegpt_jobs(tokens, path, 10, None, 0, as_text=True)
    assert {job.prompt for job in jobs} == set(good)
    [asked] = [job for job in jobs if job.prompt == good[0]]
    assert (asked.input_tokens, asked.output_tokens) == tuple(len(ids) for ids in tokens.encode(list(good)))
    fixed = sharegpt_jobs(tokens, path, 10, 33, 0, as_text=False)
    assert {job.output_tokens for job in fixed} == {33}
    assert all(isinstance(job.prompt, list) for job in fixed)
    assert len(sharegpt_jobs(tokens, path, 1, None, 0, as_text=True)) == 1


def test_a_line_per_conversation_is_read_too(tokens: LocalTokens, tmp_path: Path):
    path = tmp_path / "s.jsonl"
    line = {"conversations": [{"value": "What is the capital of Spain?"}, {"value": "It is the city of Madrid."}]}
    path.write_text("\n".join([json.dumps(line)] * 2) + "\n")
    assert len(sharegpt_jobs(tokens, path, 5, None, 0, as_text=True)) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"conversations": [{"no": 1}, {"no": 1}]}]', "[]"])
def test_a_file_that_is_no_sharegpt_file_is_refused_by_name(tokens: LocalTokens, tmp_path: Path, content: str):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match="--dataset-path"):
        sharegpt_jobs(tokens, path, 5, None, 0, as_text=True)


def test_arrivals_are_a_poisson_process_from_the_seed():
    due = arrivals(4000, 20.0, seed=3)
    assert due[0] == 0
    assert due == sorted(due)
    assert due == arrivals(4000, 20.0, seed=3) != arrivals(4000, 20.0, seed=4)
    gaps = [b - a for a, b in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 20, rel=0.1)
    assert spread == pytest.approx(mean, rel=0.1), "exponential gaps: as wide as their mean"
    assert arrivals(3, float("inf"), seed=0) == [0, 0, 0]
