"""Retrieval: the documents that fit a question are found by their words; the model reads them and answers.

Start a server, then run it:

    python -m sglang.launch_server --port 30000
    python examples/usage/retrieval.py
"""

import math
import os
import re
from collections import Counter

import sglang as sgl

DOCUMENTS = [
    "Tom lives in London. Tom works as a cook and likes tea.",
    "Maria lives in Madrid. Maria works as a doctor and likes music.",
    "Anna lives in Vienna. Anna works as a teacher and likes chess.",
    "Henry lives in Cairo. Henry works as a driver and likes trains.",
]


def words(text):
    return Counter(re.findall(r"\w+", text.lower()))


def find(question, documents=DOCUMENTS):
    """The document that shares most of the question's rarer words (tf-idf)."""
    rarity = {
        word: math.log((1 + len(documents)) / (1 + sum(word in words(text) for text in documents)))
        for word in words(question)
    }
    return max(documents, key=lambda text: sum(rarity[word] for word in words(question) if word in words(text)))


@sgl.function
def answer(s, question):
    s += f"{find(question)}\n\nQuestion: {question}\nAnswer:"
    s += sgl.gen("answer", stop="\n", max_tokens=32)


if __name__ == "__main__":
    sgl.set_default_backend(sgl.RuntimeEndpoint(os.environ.get("SGLANG_URL", "http://localhost:30000")))

    questions = ["Where does Tom live?", "What is the job of Maria?", "What does Tom like?"]
    for question, state in zip(questions, answer.run_batch([(q,) for q in questions], temperature=0), strict=True):
        print(question, "->", state["answer"].strip())
