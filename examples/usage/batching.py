"""Many runs of one program at once: the server computes their common beginning one time.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/batching.py
"""

import os
import time

import sglang as sgl


@sgl.function
def few_shot_qa(s, question):
    s += "The following are questions with answers.\n\n"
    s += "Q: What is the capital of France?\nA: Paris\nQ: What is the capital of Germany?\nA: Berlin\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n", temperature=0, max_tokens=16)


PLACES = ["Italy", "Japan", "Kenya", "Brazil", "Norway", "Egypt", "India", "Canada"]

if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    batch = [{"question": f"What is the capital of {place}?"} for place in PLACES]
    begun = time.perf_counter()
    for place, state in zip(PLACES, few_shot_qa.run_batch(batch, progress_bar=True), strict=True):
        print(f"{place}: {state['answer'].strip()}")
    print(f"{len(batch)} programs in {time.perf_counter() - begun:.2f} s")

    # As they finish, without waiting for the slowest:
    for state in few_shot_qa.run_batch(batch, generator_style=True):
        print(state["answer"].strip(), end=" ", flush=True)
    print()
