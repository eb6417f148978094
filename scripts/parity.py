"""Measure every family against its reference, and write docs/models.md: `make parity`.

With names of families' files, `scripts/parity.py gemma grok`, measure those and what the page does not have yet; with
`--keep`, only the latter.

The cases are those of test/parity: tiny random checkpoints in the layout of real ones, float32, on a CPU. A difference
is the largest of all log-probabilities of 40 tokens, computed whole, in chunks and one by one.

Figures of a GPU are read, whatever is measured, from what `python scripts/gpu_check.py parity --save h200_parity` has
left in benchmark/results: after a new run of that, `scripts/parity.py --keep` renews the page.
"""

import argparse
import ast
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "test" / "parity"), str(ROOT / "scripts")]

PAGE = ROOT / "docs" / "models.md"
ON_GPU = ROOT / "benchmark" / "results" / "h200_parity_rows.json"
NOT_THERE = "– | –"
HEAD = """\
# Models and how exactly they are computed

<!-- Written by scripts/parity.py: `make parity` measures and writes it. -->

Every family is compared with an independent implementation of it: `transformers`, or, where that has none, the
reference written from the published description in
[reference_models.py](../test/parity/reference_models.py). Both read the same tiny random checkpoint, saved with the
names and layouts of real ones, and compute it in float32 on a CPU. The difference is the largest among all
log-probabilities (vocabulary of 128, standard deviation 0.5 or more) of a sequence of 40 tokens that is computed whole,
in chunks and token by token. Greedy: 64 tokens of text are the reference's own choices. Lines: of code in the family's
file, names of tensors included. How a family is added: [adding_a_model.md](adding_a_model.md).

bfloat16 on a GPU: the median difference of the same log-probabilities from the same reference in float32, ours / that
of the reference itself in bfloat16, which says how much is the type's. Greedy there: of 64 tokens of our text, how many
are what the reference in float32 chooses after those before.

| family | case | reference | largest difference | greedy | bfloat16 on a GPU | greedy there |
|---|---|---|---|---|---|---|
"""


VECTORS = """\

Vectors of texts (`--is-embedding`): the same checkpoints' way, against `transformers`' states pooled and normalised by
sentence-transformers' formulas; eight texts of 1 to 40 tokens at once, through the scheduler. The difference is the
largest among all numbers, relative to the largest of its vector where that is above 1.

| family | case | pooling | largest difference |
|---|---|---|---|
"""


class Case(NamedTuple):
    module: str  # of the family
    name: str
    reference: str
    write: Any  # folder -> model


def cases() -> list[Case]:
    """All cases of test/parity, by family."""
    from family_cases import CASES as KNOWN
    from reference_models import CASES as WRITTEN
    from tiny_checkpoints import HEADS, by_reference, by_transformers

    import sglang.models.families  # noqa: F401 - fills the registry
    from sglang.models.spec import FAMILIES

    found = [
        Case(
            FAMILIES[family + HEADS.get(family, "ForCausalLM")].module,
            name,
            "transformers",
            lambda folder, f=family, c=changes: by_transformers(folder, f, c),
        )
        for name, (family, changes) in KNOWN.items()
    ]
    found += [
        Case(
            FAMILIES[config["architectures"][0]].module,
            name,
            "written out",
            lambda folder, b=build, c=config: by_reference(folder, b, c),
        )
        for name, (build, config) in WRITTEN.items()
    ]
    return sorted(found, key=lambda case: case.module)


def vector_cases() -> list[tuple[str, str]]:
    """(family's file, case) of test/parity/embedding_cases.py."""
    from embedding_cases import CASES as VECTOR_CASES

    import sglang.models.families  # noqa: F401 - fills the registry
    from sglang.models.spec import FAMILIES

    def family(kind: str) -> str:
        return (FAMILIES.get(kind) or FAMILIES[kind.removesuffix("Model") + "ForCausalLM"]).module

    return sorted((family(kind), name) for name, (kind, *_) in VECTOR_CASES.items())


def pooling_of(name: str) -> str:
    from embedding_cases import CASES as VECTOR_CASES

    _, _, mode, unit = VECTOR_CASES[name]
    return (mode or "not said").removesuffix("_tokens").removesuffix("_token") + (", of length 1" if unit else "")


def vectors_measured(name: str) -> float:
    from embedding_cases import TEXTS, expected, vectors, written

    with tempfile.TemporaryDirectory() as folder:
        model = written(Path(folder), name)
        found, _ = vectors(Path(folder), TEXTS)
        wanted = [expected(model, name, text) for text in TEXTS]
    return max((f - w).abs().max().item() / max(1.0, w.abs().max().item()) for f, w in zip(found, wanted, strict=True))


def lines() -> dict[str, int]:
    """Code lines of each family's file, and of the families in it the mean."""
    from size import code_lines

    folder = ROOT / "python" / "sglang" / "models" / "families"
    return {p.stem: code_lines(p.read_text("utf-8")) for p in sorted(folder.glob("*.py")) if p.stem != "__init__"}


def records(module: str) -> int:
    """Families that a file registers."""
    path = ROOT / "python" / "sglang" / "models" / "families" / f"{module}.py"
    tree = ast.parse(path.read_text("utf-8"))
    return sum(isinstance(node, ast.FunctionDef) and bool(node.decorator_list) for node in tree.body)


def measured(case: Case) -> tuple[float, bool]:
    import torch
    from engine_driver import Driver, load
    from family_cases import TOKENS, known, moving_text

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = case.write(folder)

        @torch.no_grad()
        def reference(tokens: list[int]) -> torch.Tensor:
            if case.reference == "transformers":
                return model(torch.tensor([tokens])).logits[0].float()
            return model(torch.tensor(tokens)).float()

        driver = Driver(load(folder, context_length=128))
        expected = reference(TOKENS).log_softmax(-1)
        worst = 0.0
        for slot, cuts in enumerate(([], [1, 9, 24, 39], list(range(1, 40)))):
            worst = max(worst, (known(driver, slot, TOKENS, cuts) - expected).abs().max().item())
        try:
            prompt, text = moving_text(driver)
        except AssertionError:  # a text that repeats itself says less, and something
            prompt, text = TOKENS[:11], driver.generate(5, TOKENS[:11], 64)
        return worst, reference(prompt + text).argmax(-1)[10:-1].tolist() == text


def on_gpu() -> dict[tuple[str, str], str]:
    """(family's file, case) -> the two cells of the last run on a GPU; cases that failed there are left out."""
    if not ON_GPU.exists():
        return {}
    found = {}
    for row in json.loads(ON_GPU.read_text("utf-8"))["rows"]:
        if "median" in row:
            ours, theirs, greedy = (row[name] for name in ("median", "reference's median", "greedy of 64"))
            found[row["family"], row["case"]] = f"{ours:.1e} / {theirs:.1e} | {greedy}"
    return found


def sizes() -> str:
    """The table of lines: what a test can compare without measuring."""
    rows = [f"| [{m}](../python/sglang/models/families/{m}.py) | {n} | {records(m)} |" for m, n in lines().items()]
    each = sorted(n / records(m) for m, n in lines().items() for _ in range(records(m)))
    median = f"Median of lines per family: {each[len(each) // 2]:.0f}; most: {each[-1]:.0f}."
    return "| file | lines | families |\n|---|---|---|\n" + "\n".join(rows) + f"\n\n{median}\n"


def main(modules: Sequence[str], keep: bool) -> None:
    import torch

    torch.set_num_threads(1)
    known = PAGE.read_text("utf-8").splitlines() if modules or keep else []
    there = on_gpu()
    rows = []
    for case in cases():
        link = f"[{case.module}](../python/sglang/models/families/{case.module}.py)"
        begin = f"| {link} | {case.name} | {case.reference} | "
        cells = next((line.removeprefix(begin).split(" | ") for line in known if line.startswith(begin)), None)
        if cells is None or case.module in modules:
            worst, greedy = measured(case)
            cells = [f"{worst:.1e}", "equal" if greedy else "DIFFERS"]
            print(begin + " | ".join(cells), flush=True)
        rows.append(f"{begin}{' | '.join(cells[:2])} | {there.get((case.module, case.name), NOT_THERE)} |")
    vectors = []
    for module, name in vector_cases():
        begin = f"| [{module}](../python/sglang/models/families/{module}.py) | {name} | {pooling_of(name)} | "
        row = next((line for line in known if line.startswith(begin)), None)
        if row is None or module in modules:
            row = f"{begin}{vectors_measured(name):.1e} |"
            print(row, flush=True)
        vectors.append(row)
    PAGE.write_text(HEAD + "\n".join(rows) + "\n" + VECTORS + "\n".join(vectors) + f"\n\n{sizes()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="Files of families to measure; none: all, without --keep.")
    parser.add_argument("--keep", action="store_true", help="Measure only these, and what the page does not have yet.")
    args = parser.parse_args()
    main(args.families, args.keep)
