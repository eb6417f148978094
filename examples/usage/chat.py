"""A conversation in the terminal. The state grows; what was said before is not computed again.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/chat.py
"""

import os
import sys

import sglang as sgl


@sgl.function
def conversation(s, lines):
    s += sgl.system("You are a helpful assistant.")
    for turn, line in enumerate(lines):
        with s.user():
            s += line.strip()
        with s.assistant():
            s += sgl.gen(f"answer_{turn}", max_tokens=128, temperature=0)
        print("assistant:", s[f"answer_{turn}"])


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))
    print("One line is one message; Ctrl-D ends the conversation.")
    conversation.run(sys.stdin)
