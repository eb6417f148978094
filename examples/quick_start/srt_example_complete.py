"""Few-shot questions and answers with a server of the script's own.

    python examples/quick_start/srt_example_complete.py

`sgl.Runtime` takes the flags of `launch_server` as keywords and ends with the script.
"""

import sglang as sgl


@sgl.function
def few_shot_qa(s, question):
    s += "The following are questions with answers.\n\n"
    s += "Q: What is the capital of France?\nA: Paris\n"
    s += "Q: What is the capital of Germany?\nA: Berlin\n"
    s += "Q: What is the capital of Italy?\nA: Rome\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n", temperature=0)


def single():
    state = few_shot_qa.run(question="What is the capital of the United States?")
    print(state["answer"].strip())


def stream():
    state = few_shot_qa.run(question="What is the capital of Spain?", stream=True)
    for piece in state.text_iter("answer"):
        print(piece, end="", flush=True)
    print()


def batch():
    places = ["Japan", "Kenya", "Brazil"]
    states = few_shot_qa.run_batch([{"question": f"What is the capital of {place}?"} for place in places])
    for place, state in zip(places, states, strict=True):
        print(place, ":", state["answer"].strip())


if __name__ == "__main__":
    # model_path="meta-llama/Meta-Llama-3-8B-Instruct" serves another model; without one it is the small demo model.
    with sgl.Runtime() as runtime:
        sgl.set_default_backend(runtime)
        print("========== single ==========")
        single()
        print("========== stream ==========")
        stream()
        print("========== batch ==========")
        batch()
