"""A chat of two turns with a local model.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/quick_start/srt_example_chat.py
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


def single():
    state = multi_turn_question.run(
        question_1="What is the capital of the United States?",
        question_2="List two local attractions.",
        temperature=0,
    )
    for m in state.messages():
        print(m["role"], ":", m["content"])
    print("\n-- answer_1 --\n", state["answer_1"])


def stream():
    state = multi_turn_question.run(
        question_1="What is the capital of France?",
        question_2="List two local attractions.",
        temperature=0,
        stream=True,
    )
    for piece in state.text_iter():
        print(piece, end="", flush=True)


def batch():
    states = multi_turn_question.run_batch(
        [
            {"question_1": "What is the capital of Japan?", "question_2": "List two local attractions."},
            {"question_1": "What is the capital of Italy?", "question_2": "Name two attractions there."},
        ],
        temperature=0,
    )
    for state in states:
        print(state["answer_1"], "|", state["answer_2"])


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    print("========== single ==========")
    single()
    print("\n========== stream ==========")
    stream()
    print("\n========== batch ==========")
    batch()
