"""Questions about a picture, with Yi-VL on a GPU.

It needs a picture, and starts its own server (SGLANG_URL names a running one):

    python examples/quick_start/srt_example_yi_vl.py picture.jpg "What is this?"

Our server serves no images yet: until it does, this ends with its error, "image_data is not supported by this server".
API models see them already: sgl.OpenAI, sgl.Anthropic, sgl.VertexAI.
"""

import os
import sys

import sglang as sgl


@sgl.function
def image_qa(s, image_file, question):
    s += sgl.user(sgl.image(image_file) + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=256, stop="###"))  # Yi-VL ends a turn with the next one's mark


if __name__ == "__main__":
    picture, question = sys.argv[1], " ".join(sys.argv[2:]) or "What is this?"
    url = os.environ.get("SGLANG_URL")
    sgl.set_default_backend(sgl.RuntimeEndpoint(url) if url else sgl.Runtime(model_path="BabyChou/Yi-VL-6B"))
    print(image_qa.run(picture, question, temperature=0)["answer"])
