"""ReAct: the model thinks, asks for a tool, reads what the tool found, and thinks on.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/react.py
"""

import os

import sglang as sgl

PAGES = {
    "Munich": "Munich is a city in Germany.",
    "Kyoto": "Kyoto is a city in Japan.",
    "Germany": "The capital of Germany is Berlin. People in Germany speak German.",
    "Japan": "The capital of Japan is Tokyo. People in Japan speak Japanese.",
}


@sgl.function
def react(s, question, steps=4):
    s += f"Question: {question}\n"
    for i in range(1, steps + 1):
        s += f"Thought {i}:" + sgl.gen("thought", stop=["\n", "Action"], max_tokens=48) + "\n"
        s += f"Action {i}: " + sgl.gen("action", choices=["Search[", "Finish["])
        s += sgl.gen("argument", stop="]", max_tokens=16) + "]\n"
        if s["action"] == "Finish[":
            return s["argument"]
        s += f"Observation {i}: " + PAGES.get(s["argument"], "Nothing was found.") + "\n"
    return None


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    for city in ("Munich", "Kyoto"):
        state = react.run(f"What is the capital of the country in which {city} lies?", temperature=0)
        print(state.text())
        print("->", state.ret_value, "\n")
