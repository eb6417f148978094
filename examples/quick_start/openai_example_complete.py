"""Few-shot questions and answers with an OpenAI completion model.

Set what is secret, then run it:

    export OPENAI_API_KEY=sk-...
    python examples/quick_start/openai_example_complete.py
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


if __name__ == "__main__":
    sgl.set_default_backend(sgl.OpenAI("gpt-3.5-turbo-instruct"))

    for piece in few_shot_qa.run("What is the capital of the United States?", stream=True).text_iter("answer"):
        print(piece, end="", flush=True)
    print()

    places = ["the United Kingdom", "France", "Japan"]
    states = few_shot_qa.run_batch([{"question": f"What is the capital of {place}?"} for place in places])
    for place, state in zip(places, states, strict=True):
        print(place, ":", state["answer"].strip())
