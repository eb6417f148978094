"""The language's features, each in a few lines, as the documentation shows them.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/readme_examples.py
"""

import os

import sglang as sgl


@sgl.function
def tool_use(s, question):
    s += "To answer this question: " + question + ". "
    s += "I need to use a " + sgl.gen("tool", choices=["calculator", "search engine"]) + ". "

    if s["tool"] == "calculator":
        s += "The math expression is" + sgl.gen("expression", stop=".")
    elif s["tool"] == "search engine":
        s += "The key word to search is" + sgl.gen("word", stop=".")


@sgl.function
def tip_suggestion(s):
    s += "Here are two tips for staying healthy: 1. Balanced Diet. 2. Regular Exercise.\n\n"

    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now, expand tip {i + 1} into a paragraph:\n"
        f += sgl.gen("detailed_tip", max_tokens=256, stop="\n\n")

    s += "Tip 1:" + forks[0]["detailed_tip"] + "\n"
    s += "Tip 2:" + forks[1]["detailed_tip"] + "\n"
    s += "In summary" + sgl.gen("summary", stop="\n")


@sgl.function
def regular_expression_gen(s):
    s += "Q: What is the IP address of the Google DNS servers?\n"
    s += "A: " + sgl.gen(
        "answer",
        temperature=0,
        regex=r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)",
    )


@sgl.function
def text_qa(s, question):
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n")


def driver_tool_use():
    for question in ("What is 7 + 8?", "Who is the president of France?"):
        print(tool_use.run(question, temperature=0).text())


def driver_tip_suggestion():
    print(tip_suggestion.run(temperature=0).text())


def driver_regex():
    print(regular_expression_gen.run().text())


def driver_batching():
    states = text_qa.run_batch(
        [
            {"question": "What is the capital of the United Kingdom?"},
            {"question": "What is the capital of France?"},
            {"question": "What is the capital of Japan?"},
        ],
        temperature=0,
        progress_bar=True,
    )
    for state in states:
        print(state["answer"])


def driver_stream():
    state = text_qa.run(question="What is the capital of France?", temperature=0.1, stream=True)
    for piece in state.text_iter():
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    for driver in (driver_tool_use, driver_tip_suggestion, driver_regex, driver_batching, driver_stream):
        print(f"\n== {driver.__name__} ==")
        driver()
