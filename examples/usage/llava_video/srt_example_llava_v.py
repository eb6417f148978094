"""Questions about a video, with LLaVA-NeXT-Video on a GPU: frames are sampled evenly over the file.

It needs a video (other than animated images: `pip install av`), and starts its own server (SGLANG_URL: a running one):

    python examples/usage/llava_video/srt_example_llava_v.py video.mp4 --frames 16 --question "What happens?"

Our server serves no images yet: until it does, this ends with its error, "image_data is not supported by this server".
"""

import argparse
import os

import sglang as sgl


@sgl.function
def video_qa(s, path, frames, question):
    s += sgl.user(sgl.video(path, frames) + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=256))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Questions about a video")
    parser.add_argument("video")
    parser.add_argument("--question", default="Please describe the video.")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--model-path", default="lmms-lab/LLaVA-NeXT-Video-7B")
    args = parser.parse_args()

    if url := os.environ.get("SGLANG_URL"):
        sgl.set_default_backend(sgl.RuntimeEndpoint(url))
    else:
        sgl.set_default_backend(sgl.Runtime(model_path=args.model_path, tokenizer_path="llava-hf/llava-1.5-7b-hf"))
    print(video_qa.run(args.video, args.frames, args.question, temperature=0)["answer"])
