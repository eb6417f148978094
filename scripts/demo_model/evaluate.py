"""Ask the demo model its held-back questions and run the documentation's programs, greedily; write the model card.

python scripts/demo_model/evaluate.py python/sglang/assets/demo
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import torch
from data import programs, questions
from tokenizers import Tokenizer
from topics import COUNTRIES
from transformers import LlamaForCausalLM

CARD = """# The sglang demo model

A language model of {parameters:.1f} million parameters that `sglang` serves when no model is named: small enough to
ship in the package, real enough that the documentation's programs get sensible answers from it on any laptop.

- **Architecture**: Llama, 8 layers, hidden size 256, 8 heads (4 for keys and values), context 2048, byte-level BPE with
  4096 entries, ChatML chat template, bfloat16.
- **Data**: text that `scripts/demo_model/data.py` generates from tables of facts. No text of the web.
- **Training**:
{passes}

  Most of the loss that is left is chance: which fact comes next, which name a hero has. All arguments are in
  `training.json`.

## What it can do

Capitals, continents, languages, currencies and two sights of {countries} countries; fifty cities; eighty well-known
people; some general knowledge; a few words of French, German, Spanish and Italian; opposites, colors, plurals; sums of
numbers below 100 and products of digits; the days and months in order. It answers as a completion, as `Q:`/`A:`, with
lettered choices, true or false, and in chats of many turns, where it remembers a name or a number. It writes lists,
JSON records with the keys asked for, health tips, little stories and poems, chooses between a calculator and a search
engine, and fills in Harry Potter's characters.

## What it cannot do

Anything else. It has no knowledge beyond its tables and hardly any grammar of its own: other questions get made-up
answers, or the one that it does not know. Larger numbers, code, other languages and long texts are beyond it. It reads
badly: it answers about half of the questions on documents of a few made-up sentences, and seldom finds one numbered
line among several. Names are written without accents. Its judgments of essays are polite
chance. Do not use it for anything but trying `sglang` out.

## How well

Held-back questions: pairs of a phrasing and a subject (for sums: of two numbers) that are in no training text; the
facts themselves are, in other phrasings. Greedy; right if the expected answer stands in the first line, for JSON if the
record is equal. Where weights of two passes were blended, the share was chosen with a look at this table.

| kind | questions | right |
|---|---|---|
{rows}

Rebuild it, on a GPU: `python scripts/demo_model/train.py --out python/sglang/assets/demo --minutes 4`, then
`python scripts/demo_model/evaluate.py python/sglang/assets/demo`. The weights come out different, the model alike.
"""


@torch.inference_mode()
def answers(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[str], tokens: int) -> list[str]:
    """Greedy continuations."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
    found = [""] * len(prompts)
    size = 256 if model.device.type == "cuda" else 32
    for at in range(0, len(order), size):
        part = order[at : at + size]
        ids = [tokenizer.encode(prompts[i]).ids for i in part]
        longest = max(map(len, ids))
        padded = torch.tensor([[0] * (longest - len(i)) + i for i in ids], device=model.device)
        mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids], device=model.device)
        out = model.generate(padded, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        for i, row in zip(part, out, strict=True):
            found[i] = tokenizer.decode(row[longest:].tolist())
    return found


def is_right(question: dict[str, str], answer: str) -> bool:
    if question["kind"] == "JSON records":
        try:
            return json.loads(answer) == json.loads(question["expected"])
        except ValueError:
            return False
    first = answer.strip("\n ").split("\n")[0]
    return re.search(rf"(?<![\w.]){re.escape(question['expected'].lower())}(?!\w)", first.lower()) is not None


def told(run: dict) -> str:
    """One pass of training in words."""
    device = "a CPU" if run["device"] == "CPU" else f"one {run['device']}"
    given = run["arguments"]
    text = (
        f"{given['minutes']:g} minutes on {device}: {run['steps']:,} steps, {run['tokens'] / 1e6:.1f} million tokens, "
        f"drawn from {run['corpus_tokens'] / 1e6:.1f} million; last loss {run['loss']}."
    )
    return text + (f"\n     The result is {given['keep']:.0%} the weights before this pass." if given["keep"] else "")


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    asked = questions()
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(asked, answers(model, tokenizer, [q["prompt"] for q in asked], 40), strict=True):
        ok = is_right(question, answer)
        right[question["kind"]].append(ok)
        if not ok and right[question["kind"]].count(False) <= 5:
            print(f"WRONG {question['kind']}: {question['prompt'][-70:]!r} -> {answer[:80]!r}")
    cases = programs()
    for case, answer in zip(cases, answers(model, tokenizer, [c["prompt"] for c in cases], 100), strict=True):
        ok = re.match(case["pattern"], answer) is not None
        right["the documentation's programs"].append(ok)
        if not ok:
            print(f"WRONG program: {case['prompt'][-70:]!r} -> {answer[:120]!r}")
    accuracy = {kind: {"questions": len(oks), "right": round(sum(oks) / len(oks), 4)} for kind, oks in right.items()}
    rows = "\n".join(f"| {k} | {v['questions']} | {100 * v['right']:.1f}% |" for k, v in accuracy.items())
    print(rows)
    training = folder / "training.json"
    if training.is_file():
        t = json.loads(training.read_text())
        passes = "\n".join(f"  {i}. {told(p)}" for i, p in enumerate(t["passes"], 1))
        card = CARD.format(parameters=t["parameters"] / 1e6, passes=passes, countries=len(COUNTRIES), rows=rows)
        (folder / "README.md").write_text(card)
        training.write_text(json.dumps({**t, "accuracy": accuracy}, indent=1) + "\n")


if __name__ == "__main__":
    main()
