"""Questions about a video, with LLaVA-NeXT-Video on a GPU: frames are sampled evenly over the file.

It starts its own server:

    python examples/usage/llava_video/srt_example_llava_v.py video.mp4 --frames 16 --question "What happens?"
"""

import argparse

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

    runtime = sgl.Runtime(model_path=args.model_path, tokenizer_path="llava-hf/llava-1.5-7b-hf")
    sgl.set_default_backend(runtime)
    print(video_qa.run(args.video, args.frames, args.question, temperature=0)["answer"])
    runtime.shutdown()
