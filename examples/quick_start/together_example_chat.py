"""A chat of two turns with a model at Together AI.

Set what is secret, then run it:

    export TOGETHER_API_KEY=...
    python examples/quick_start/together_example_chat.py
"""

import os

import sglang as sgl


@sgl.function
def multi_turn_question(s, question_1, question_2):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question_1)
    s += sgl.assistant(sgl.gen("answer_1", max_tokens=256))
    s += sgl.user(question_2)
    s += sgl.assistant(sgl.gen("answer_2", max_tokens=256))


if __name__ == "__main__":
    backend = sgl.OpenAI(
        model_name="mistralai/Mixtral-8x7B-Instruct-v0.1",
        base_url=os.environ.get("TOGETHER_BASE_URL", "https://api.together.xyz/v1"),
        api_key=os.environ["TOGETHER_API_KEY"],
    )
    sgl.set_default_backend(backend)

    questions = {"question_1": "What is the capital of the United States?", "question_2": "List two local attractions."}
    state = multi_turn_question.run(**questions)
    for m in state.messages():
        print(m["role"], ":", m["content"])

    print("\n-- the second answer as it comes --")
    for piece in multi_turn_question.run(**questions, stream=True).text_iter("answer_2"):
        print(piece, end="", flush=True)
    print()
