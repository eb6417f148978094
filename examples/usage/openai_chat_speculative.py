"""API speculative execution on a chat model: text and gens may alternate inside one assistant message.

All of the message is asked for in one call and matched against the program's text. Every gen but the last needs a
`stop`, which ends it where the text goes on; values are readable after the message.

    export OPENAI_API_KEY=sk-...
    python examples/usage/openai_chat_speculative.py
"""

import sglang as sgl


@sgl.function(num_api_spec_tokens=256)
def character_card(s, name):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(
        f"Describe {name} in this format, with nothing before or after it:\nName: ...\nBirthday: ...\nJob: ..."
    )
    s += sgl.assistant(
        "Name:" + sgl.gen("name", stop="\n")
        + "\nBirthday:" + sgl.gen("birthday", stop="\n")
        + "\nJob:" + sgl.gen("job", stop="\n")
    )  # fmt: skip


if __name__ == "__main__":
    sgl.set_default_backend(sgl.OpenAI("gpt-4o-mini"))
    state = character_card.run("Ada Lovelace", temperature=0)
    for name in ("name", "birthday", "job"):
        print(name, ":", state[name].strip())
