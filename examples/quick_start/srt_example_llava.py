"""Questions about a picture, with a LLaVA model on a GPU.

It starts its own server:

    python examples/quick_start/srt_example_llava.py picture.jpg "What is this?"
"""

import sys

import sglang as sgl


@sgl.function
def image_qa(s, image_file, question):
    s += sgl.user(sgl.image(image_file) + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=256))


if __name__ == "__main__":
    picture, question = sys.argv[1], " ".join(sys.argv[2:]) or "What is this?"
    runtime = sgl.Runtime(model_path="liuhaotian/llava-v1.6-vicuna-7b", tokenizer_path="llava-hf/llava-1.5-7b-hf")
    sgl.set_default_backend(runtime)
    for piece in image_qa.run(picture, question, temperature=0, stream=True).text_iter("answer"):
        print(piece, end="", flush=True)
    print()
    runtime.shutdown()
