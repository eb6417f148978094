"""How a choice was made: the log-probabilities behind `choices`, by three ways to compare them.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/choices_logprob.py
"""

import os

import sglang as sgl


@sgl.function
def tool_use(s, question, method):
    s += "To answer this question: " + question + " "
    s += "I need to use a " + sgl.gen("tool", choices=["calculator", "search engine"], choices_method=method)


def explain(question, method):
    state = tool_use.run(question, method)
    meta = state.get_meta_info("tool")
    print(f"{question} -> {state['tool']}  ({method.__name__})")
    for choice, mean, tokens in zip(
        ("calculator", "search engine"),
        meta["normalized_prompt_logprobs"],
        meta["input_token_logprobs"],
        strict=True,
    ):
        print(f"  {choice}: mean {mean:.2f} of", [round(logprob, 2) for logprob, *_ in tokens if logprob is not None])


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    explain("What is 7 + 8?", sgl.token_length_normalized)
    explain("Who is the president of France?", sgl.token_length_normalized)
    explain("What is 7 + 8?", sgl.greedy_token_selection)
    explain("What is 7 + 8?", sgl.unconditional_likelihood_normalized)
