"""Tree of thought: some ways to think, some answers for each, and a vote. Forks of forks share all that they can.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/tree_of_thought.py
"""

import os
import re
from collections import Counter

import sglang as sgl


@sgl.function
def tree_of_thought(s, question, ways, leaves):
    s += f"Question: {question}\n"
    plans = s.fork(ways)
    plans += "Thought:" + sgl.gen("plan", stop="\n", temperature=0.8, max_tokens=32) + "\n"

    votes = []
    for plan in plans:
        answers = plan.fork(leaves)
        answers += "Answer:" + sgl.gen("answer", stop="\n", temperature=0.5, max_tokens=32)
        votes.append(answers)

    said = [leaf["answer"] for answers in votes for leaf in answers]
    numbers = [found[-1] for found in (re.findall(r"\d+", text) for text in said) if found]
    s += "Answer: " + Counter(numbers).most_common(1)[0][0]
    return Counter(numbers)


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    state = tree_of_thought.run("Tom has 3 apples and buys 4 more apples. How many apples does he have?", 3, 4)
    print(state.text())
    print("votes:", dict(state.ret_value))
