"""A chat of two turns with a Gemini model on Vertex AI.

Set what is secret, then run it:

    export GCP_PROJECT_ID=...
    gcloud auth application-default login
    python examples/quick_start/gemini_example_chat.py
"""

import sglang as sgl


@sgl.function
def multi_turn_question(s, question_1, question_2):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question_1)
    s += sgl.assistant(sgl.gen("answer_1", max_tokens=256))
    s += sgl.user(question_2)
    s += sgl.assistant(sgl.gen("answer_2", max_tokens=256))


if __name__ == "__main__":
    sgl.set_default_backend(sgl.VertexAI("gemini-2.5-flash"))

    questions = {"question_1": "What is the capital of the United States?", "question_2": "List two local attractions."}
    state = multi_turn_question.run(**questions)
    for m in state.messages():
        print(m["role"], ":", m["content"])

    print("\n-- the second answer as it comes --")
    for piece in multi_turn_question.run(**questions, stream=True).text_iter("answer_2"):
        print(piece, end="", flush=True)
    print()
