"""Several samples of one answer, in parallel, by forks.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/parallel_sample.py
"""

import os
from collections import Counter

import sglang as sgl


@sgl.function
def parallel_sample(s, question, samples):
    s += f"Question: {question}\nAnswer:"

    forks = s.fork(samples)
    forks += sgl.gen("reasoning", stop=["The answer is", "\n"], temperature=0.8, max_tokens=32)
    forks += "The answer is" + sgl.gen("answer", stop=".", temperature=0.8, max_tokens=8)
    forks.join()  # "reasoning" and "answer" are now lists, one value for each fork


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    state = parallel_sample.run("Tom has 30 apples and buys 12 more apples. How many apples does he have?", samples=5)
    for reasoning, answer in zip(state["reasoning"], state["answer"], strict=True):
        print(reasoning.strip(), "->", answer.strip())
    print("most say", Counter(answer.strip() for answer in state["answer"]).most_common(1)[0][0])
