"""Chain-of-thought decoding: follow the likeliest first tokens, and trust the answer of which the model is surest.

After X. Wang and D. Zhou, "Chain-of-Thought Reasoning without Prompting" (2024): the confidence of a path is the mean
gap between the two likeliest tokens along it.

    python -m sglang.launch_server --port 30000
    python examples/usage/cot_decoding.py
"""

import math
import os

import sglang as sgl


@sgl.function
def first_tokens(s, question, k):
    s += f"Question: {question}\nAnswer:"
    s += sgl.gen(
        "first", max_tokens=1, temperature=0, return_logprob=True, top_logprobs_num=k, return_text_in_logprobs=True
    )


@sgl.function
def path(s, question, start):
    s += f"Question: {question}\nAnswer:{start}"
    s += sgl.gen("rest", max_tokens=32, stop="\n", temperature=0, return_logprob=True, top_logprobs_num=2)


def confidence(meta):
    gaps = [math.exp(top[0][0]) - math.exp(top[1][0]) for top in meta["output_top_logprobs"] if len(top) > 1]
    return sum(gaps) / len(gaps) if gaps else 0.0


def cot_decoding(question, k=5):
    meta = first_tokens.run(question, k).get_meta_info("first")
    starts = [token for _, _, token in meta["output_top_logprobs"][0]]
    states = path.run_batch([{"question": question, "start": start} for start in starts])
    return sorted(
        ((confidence(s.get_meta_info("rest")), start + s["rest"]) for start, s in zip(starts, states, strict=True)),
        reverse=True,
    )


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    for sure, text in cot_decoding("Tom has 3 apples and buys 4 more apples. How many apples does he have?"):
        print(f"{sure:.2f} {text!r}")
