"""A model as the judge of an essay: three dimensions in parallel, then a grade as JSON.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/llm_judge.py
"""

import json
import os

import sglang as sgl

DIMENSIONS = ["Clarity", "Originality", "Evidence"]
GRADE = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "grade": {"enum": ["A", "A-", "B+", "B", "B-", "C", "D"]}},
    "required": ["summary", "grade"],
}


@sgl.function
def judge(s, essay):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user("Essay: " + essay)
    s += sgl.assistant("Sure!")

    forks = s.fork(len(DIMENSIONS))
    for fork, dimension in zip(forks, DIMENSIONS, strict=True):
        fork += sgl.user(
            f"Evaluate based on the following dimension: {dimension}. End your judgment with the word 'END'"
        )
        fork += sgl.assistant("Judgment:" + sgl.gen("judgment", max_tokens=64, stop="END"))

    for fork, dimension in zip(forks, DIMENSIONS, strict=True):
        s += sgl.user(f"{dimension}:{fork['judgment']}")
        s += sgl.assistant("Thank you.")
    s += sgl.user("Provide the judgment, summary, and a letter grade")
    s += sgl.assistant(sgl.gen("verdict", max_tokens=96))
    s += sgl.user("Return in the JSON format.")
    s += sgl.assistant(sgl.gen("grade", max_tokens=64, json_schema=json.dumps(GRADE)))


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    state = judge.run("I like the color red. It makes me happy. My room is red too.", temperature=0)
    for message in state.messages():
        print(message["role"], ":", message["content"])
    print("grade:", json.loads(state["grade"])["grade"])
