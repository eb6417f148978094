"""Several samples of one answer, in parallel, by forks.


python -m sglang.launch_server --port 30000
python examples/usage/parallel_sample.py
"""

import os
from collections import Counter

import sglang as sgl


@sgl.function
def parallel_sample(s, question, samples):
    s += "Question: What is 2 + 2?\nReasoning: I add the numbers.\nAnswer: 4\n\n"
    s += "Question: " + question + "\nReasoning:"

    forks = s.fork(samples)
    forks += sgl.gen("reasoning", stop="\n", temperature=0.8, max_tokens=32) + "\n"
    forks += "Answer:" + sgl.gen("answer", stop="\n", temperature=0.8, max_tokens=8)
    forks.join()


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    state = parallel_sample.run("What is 12 + 30?", samples=5)
    for reasoning, answer in zip(state["reasoning"], state["answer"], strict=True):
        print(reasoning.strip(), "->", answer.strip())
    print("most say", Counter(answer.strip() for answer in state["answer"]).most_common(1)[0][0])
