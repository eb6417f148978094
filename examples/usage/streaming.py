"""Text as it is written: all of a program's, or one variable's.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/streaming.py
"""

import os

import sglang as sgl


@sgl.function
def story(s):
    s += "Once upon a time," + sgl.gen("story", max_tokens=64, temperature=0.7)


@sgl.function
def multi_turn_question(s, question_1, question_2):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question_1)
    s += sgl.assistant(sgl.gen("answer_1", max_tokens=64))
    s += sgl.user(question_2)
    s += sgl.assistant(sgl.gen("answer_2", max_tokens=64))


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    for piece in story.run(stream=True).text_iter():
        print(piece, end="", flush=True)
    print("\n")

    state = multi_turn_question.run(
        "What is the capital of Japan?", "List two local attractions.", temperature=0, stream=True
    )
    for name in ("answer_1", "answer_2"):
        print(f"{name}: ", end="")
        for piece in state.text_iter(name):
            print(piece, end="", flush=True)
        print()
