"""Prompts to measure with, made offline from a seed, or read from a ShareGPT file. Lengths are in tokens of the model.

A prompt is token ids where the API takes them: then its length is exact by construction. As text it is put together so
that encoding it gives the length asked for; a server that adds a BOS token or a chat template counts those on top.
"""

import json
import math
from pathlib import Path
from typing import Protocol

import numpy as np

from sglang.bench.apis import Job

MOST_ROUNDS = 30  # of repairing a text; two or three are usual
SHAREGPT_LEAST, SHAREGPT_PROMPT, SHAREGPT_TOTAL = 4, 1024, 2048  # tokens: what the usual selection keeps


class Tokens(Protocol):
    """A tokenizer, in this process or behind the server's API. Nothing special is added or skipped."""

    ordinary: list[int]  # what prompts are drawn from

    def encode(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: list[list[int]]) -> list[str]: ...


class DataError(ValueError):
    """Data cannot be made or read; the message names the flag."""


def random_jobs(
    tokens: Tokens, count: int, input_len: int, output_len: int, range_ratio: float, seed: int, as_text: bool
) -> list[Job]:
    """Prompts of random tokens. Lengths are uniform in [len x range_ratio, len], at least 1."""
    rng = np.random.default_rng(seed)
    inputs = _lengths(rng, count, input_len, range_ratio)
    outputs = _lengths(rng, count, output_len, range_ratio)
    prompts = [_draw(rng, tokens, n) for n in inputs]
    return _jobs(tokens, prompts, outputs, [0] * count, rng, as_text)


def shared_prefix_jobs(
    tokens: Tokens, groups: int, per_group: int, prefix_len: int, question_len: int, output_len: int, seed: int,
    as_text: bool,
) -> list[Job]:  # fmt: skip
    """`groups` prefixes, each with `per_group` questions after it, in random order."""
    rng = np.random.default_rng(seed)
    prompts, members = [], []
    for group in range(groups):
        prefix = _draw(rng, tokens, prefix_len)
        prompts += [prefix + _draw(rng, tokens, question_len) for _ in range(per_group)]
        members += [group] * per_group
    jobs = _jobs(tokens, prompts, [output_len] * len(prompts), members, rng, as_text)
    return [jobs[i] for i in rng.permutation(len(jobs))]


def sharegpt_jobs(
    tokens: Tokens, path: Path, count: int, output_len: int | None, seed: int, as_text: bool
) -> list[Job]:
    """First questions of conversations, shuffled; as many output tokens as the reply in the file has, or `output_len`.

    path: a JSON list, or a line each, of {"conversations": [{"value": text}, …]}. Left out: fewer than two turns, fewer
    than 4 tokens in question or reply, more than 1024 in the question or 2048 in both. Raises DataError.
    """
    pairs = _conversations(path)
    jobs: list[Job] = []
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    for at in range(0, len(order), 256):  # only as much is encoded as is needed
        if len(jobs) >= count:
            break
        some = [pairs[i] for i in order[at : at + 256]]
        asked = tokens.encode([question for question, _ in some])
        answered = tokens.encode([reply for _, reply in some])
        for (question, _), ids, reply in zip(some, asked, answered, strict=True):
            length = output_len or len(reply)
            if min(len(ids), length) < SHAREGPT_LEAST:
                continue
            if len(ids) > SHAREGPT_PROMPT or len(ids) + length > SHAREGPT_TOTAL:
                continue
            jobs.append(Job(question if as_text else ids, len(ids), length))
    if not jobs:
        raise DataError(f"--dataset-path {path}: no conversation of a usable length in it")
    return jobs[:count]


def _conversations(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text("utf-8")
        data = (
            json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(line) for line in text.splitlines() if line]
        )
    except (OSError, ValueError) as error:
        raise DataError(f"--dataset-path {path}: cannot be read as JSON ({error})") from None
    try:
        turns = [[turn["value"] for turn in item.get("conversations", item.get("conversation", []))] for item in data]
        return [(str(values[0]), str(values[1])) for values in turns if len(values) >= 2]
    except (AttributeError, KeyError, TypeError):
        raise DataError(f'--dataset-path {path}: not a list of {{"conversations": [{{"value": …}}, …]}}') from None


def _lengths(rng: np.random.Generator, count: int, most: int, ratio: float) -> list[int]:
    return rng.integers(max(1, math.ceil(most * ratio)), most + 1, count).tolist()


def _draw(rng: np.random.Generator, tokens: Tokens, n: int) -> list[int]:
    return np.asarray(tokens.ordinary)[rng.integers(0, len(tokens.ordinary), n)].tolist()


def _jobs(
    tokens: Tokens, prompts: list[list[int]], outputs: list[int], groups: list[int], rng: np.random.Generator,
    as_text: bool,
) -> list[Job]:  # fmt: skip
    lengths = [len(prompt) for prompt in prompts]
    shown: list[list[int] | str] = [*(_as_texts(tokens, prompts, rng) if as_text else prompts)]
    return [Job(*job) for job in zip(shown, lengths, outputs, groups, strict=True)]


def _as_texts(tokens: Tokens, prompts: list[list[int]], rng: np.random.Generator) -> list[str]:
    """Texts that encode to as many tokens as each prompt has. Only their ends are changed, so prefixes stay shared."""
    wanted = [len(prompt) for prompt in prompts]
    texts = tokens.decode(prompts)
    left = list(range(len(prompts)))
    for _ in range(MOST_ROUNDS):
        encoded = dict(zip(left, tokens.encode([texts[i] for i in left]), strict=True))
        left = [i for i in left if len(encoded[i]) != wanted[i]]
        if not left:
            return texts
        for i in left:  # Tokens that stand side by side may be one token of the tokenizer, or more.
            missing = wanted[i] - len(encoded[i])
            prompts[i] = prompts[i] + _draw(rng, tokens, missing) if missing > 0 else prompts[i][:missing]
        for i, text in zip(left, tokens.decode([prompts[i] for i in left]), strict=True):
            texts[i] = text
    raise DataError(
        f"no text of exactly {wanted[left[0]]} tokens was found for this tokenizer; try --prompt-format ids"
    )
