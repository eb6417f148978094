"""Few-shot questions and answers with a completion model at Together AI.

Set what is secret, then run it:

    export TOGETHER_API_KEY=...
    python examples/quick_start/together_example_complete.py
"""

import os

import sglang as sgl


@sgl.function
def few_shot_qa(s, question):
    s += "The following are questions with answers.\n\n"
    s += "Q: What is the capital of France?\nA: Paris\n"
    s += "Q: What is the capital of Germany?\nA: Berlin\n"
    s += "Q: What is the capital of Italy?\nA: Rome\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n", temperature=0)


if __name__ == "__main__":
    backend = sgl.OpenAI(
        model_name="mistralai/Mixtral-8x7B-v0.1",
        is_chat_model=False,
        base_url=os.environ.get("TOGETHER_BASE_URL", "https://api.together.xyz/v1"),
        api_key=os.environ["TOGETHER_API_KEY"],
    )
    sgl.set_default_backend(backend)

    for piece in few_shot_qa.run("What is the capital of the United States?", stream=True).text_iter("answer"):
        print(piece, end="", flush=True)
    print()

    places = ["the United Kingdom", "France", "Japan"]
    states = few_shot_qa.run_batch([{"question": f"What is the capital of {place}?"} for place in places])
    for place, state in zip(places, states, strict=True):
        print(place, ":", state["answer"].strip())
