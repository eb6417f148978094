"""API speculative execution on a completion model: one call serves the gens that follow it.

The model is asked for more than the first `gen` needs. Where the program's text and the model's agree, the next gens
are answered from what was written already.

    export OPENAI_API_KEY=sk-...
    python examples/usage/openai_speculative.py
"""

import sglang as sgl


def character_card(s):
    s += "Construct a character within the following format:\n"
    s += "Name: Steve Jobs.\nBirthday: February 24, 1955.\nJob: Apple CEO.\n"
    s += "\nPlease generate new Name, Birthday and Job.\n"
    s += "Name:" + sgl.gen("name", stop="\n", max_tokens=32) + "\n"
    s += "Birthday:" + sgl.gen("birthday", stop="\n", max_tokens=32) + "\n"
    s += "Job:" + sgl.gen("job", stop="\n", max_tokens=32) + "\n"


one_by_one = sgl.function(character_card)
speculative = sgl.function(num_api_spec_tokens=64)(character_card)

if __name__ == "__main__":
    backend = sgl.OpenAI("gpt-3.5-turbo-instruct")
    for program in (one_by_one, speculative):
        backend.token_usage.reset()
        state = program.run(backend=backend)
        print("".join(f"{name}:{state[name]}\n" for name in ("name", "birthday", "job")))
        print(f"prompt tokens paid for: {backend.token_usage.prompt_tokens}\n")
