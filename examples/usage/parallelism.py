"""Skeleton of thought: an outline first, then all of its points at once.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/parallelism.py
"""

import os

import sglang as sgl


@sgl.function
def article(s, about):
    s += sgl.user(f"Give me three short points about {about}.")
    s += sgl.assistant(sgl.gen("outline", max_tokens=64))

    forks = s.fork(3)
    for i, fork in enumerate(forks):
        fork += sgl.user(f"Expand point {i + 1}.")
        fork += sgl.assistant(sgl.gen("paragraph", max_tokens=64))
    forks.join()  # the parent's "paragraph" is now the list of the three

    return "\n\n".join(s["paragraph"])


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    state = article.run("a healthy life", temperature=0)
    print(state["outline"], "\n")
    print(state.ret_value)
