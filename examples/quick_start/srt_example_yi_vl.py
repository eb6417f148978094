"""Questions about a picture, with Yi-VL on a GPU.

It starts its own server:

    python examples/quick_start/srt_example_yi_vl.py picture.jpg "What is this?"
"""

import sys

import sglang as sgl


@sgl.function
def image_qa(s, image_file, question):
    s += sgl.user(sgl.image(image_file) + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=256, stop="###"))  # Yi-VL ends a turn with the next one's mark


if __name__ == "__main__":
    picture, question = sys.argv[1], " ".join(sys.argv[2:]) or "What is this?"
    runtime = sgl.Runtime(model_path="BabyChou/Yi-VL-6B")
    sgl.set_default_backend(runtime)
    print(image_qa.run(picture, question, temperature=0)["answer"])
    runtime.shutdown()
