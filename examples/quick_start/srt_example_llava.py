"""Questions about a picture, with a LLaVA model on a GPU.

It needs a picture, and starts its own server (SGLANG_URL names a running one):

    python examples/quick_start/srt_example_llava.py picture.jpg "What is this?"

Our server serves no images yet: until it does, this ends with its error, "image_data is not supported by this server".
API models see them already: sgl.OpenAI, sgl.Anthropic, sgl.VertexAI.
"""

import os
import sys

import sglang as sgl


@sgl.function
def image_qa(s, image_file, question):
    s += sgl.user(sgl.image(image_file) + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=256))


if __name__ == "__main__":
    picture, question = sys.argv[1], " ".join(sys.argv[2:]) or "What is this?"
    if url := os.environ.get("SGLANG_URL"):
        sgl.set_default_backend(sgl.RuntimeEndpoint(url))
    else:
        model, tokenizer = "liuhaotian/llava-v1.6-vicuna-7b", "llava-hf/llava-1.5-7b-hf"
        sgl.set_default_backend(sgl.Runtime(model_path=model, tokenizer_path=tokenizer))
    state = image_qa.run(picture, question, temperature=0, stream=True)
    for piece in state.text_iter("answer"):
        print(piece, end="", flush=True)
    print()
    if (error := state.error()) is not None:  # a stream that fails ends early
        raise error
