"""Programs inside an asyncio application: several answers stream at a time.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/async_io.py
"""

import asyncio
import os

import sglang as sgl


@sgl.function
def chat(s, question):
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=64, temperature=0))


@sgl.function
async def compare(s, first, second):
    """An async program awaits its variables, so that other programs go on meanwhile."""
    s += f"Q: What is the capital of {first}?\nA:" + sgl.gen("one", stop="\n", temperature=0) + "\n"
    s += f"Q: What is the capital of {second}?\nA:" + sgl.gen("two", stop="\n", temperature=0) + "\n"
    return f"{await s['one']} and {await s['two']}"


async def show(question):
    state = chat.run(question, stream=True)
    pieces = [piece async for piece in state.text_async_iter(var_name="answer")]
    print(question, "->", "|".join(pieces))


async def main():
    await asyncio.gather(
        show("What is the capital of France?"),
        show("Give me three short points about a healthy life."),
        show("Tell me a joke."),
    )
    state = await compare.run_async("Norway", "Chile")
    print(state.ret_value)


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))
    asyncio.run(main())
