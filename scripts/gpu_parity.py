"""Part `parity` of gpu_check.py: every model family in bfloat16 on the GPU, on the tiny checkpoints of `make parity`.

What is compared with is the reference in float32 on the CPU. How far bfloat16 is from that depends on the weights, so
the reference itself is computed in bfloat16 too: ours may be no farther off.
"""

import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "test" / "parity"), str(ROOT / "scripts")]

FARTHER = 1.3  # than the reference in bfloat16, in the median, which a token sent to another expert leaves alone
CUTS: tuple[list[int], ...] = ([], [1, 9, 24, 39], list(range(1, 40)))


def measured(at: int, device: str) -> dict[str, Any]:
    """Of one case: log-probabilities of 40 tokens whole, in chunks and one by one; 64 tokens of greedy text, judged by
    the reference in float32 that reads the same text."""
    import torch

    from parity import cases

    torch.set_num_threads(1)
    case = cases()[at]
    row: dict[str, Any] = {"family": case.module, "case": case.name}
    try:
        return row | _differences(case, device)
    except Exception as error:
        traceback.print_exc()
        return row | {"ok": False, "error": f"{type(error).__name__}: {error}"[:200]}


def _differences(case: Any, device: str) -> dict[str, Any]:
    import torch
    from engine_driver import Driver, load
    from family_cases import TOKENS, known

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = case.write(folder)

        @torch.no_grad()
        def reference(tokens: list[int]) -> torch.Tensor:
            of = next(model.parameters()).device
            ids = torch.tensor(tokens, device=of)
            found = model(ids[None]).logits[0] if case.reference == "transformers" else model(ids)
            return found.float().log_softmax(-1).cpu()

        driver = Driver(load(folder, device, dtype="bfloat16", context_length=128))
        wanted = reference(TOKENS)
        errors = torch.stack([(known(driver, i, TOKENS, cuts) - wanted).abs() for i, cuts in enumerate(CUTS)])
        text = driver.generate(5, TOKENS[:11], 64)
        judged = reference(TOKENS[:11] + text)[10:-1]
        same = (judged.argmax(-1) == torch.tensor(text)).sum().item()
        worst_choice = (judged.max(-1).values - judged.gather(-1, torch.tensor(text)[:, None])[:, 0]).max().item()
        # What is written out makes tensors of its own where torch does: on the CPU.
        model = model.to(device if case.reference == "transformers" else "cpu", torch.bfloat16)
        rounded = (reference(TOKENS) - wanted).abs()
    ours, theirs = errors.median().item(), rounded.median().item()
    return {
        "median": ours, "reference's median": theirs, "largest": errors.max().item(),
        "reference's largest": rounded.max().item(), "greedy of 64": same, "worst choice": worst_choice,
        "ok": ours <= FARTHER * theirs + 1e-3,
    }  # fmt: skip


def run(device: str = "cuda", processes: int = 8) -> dict[str, Any]:
    from parity import cases

    began = time.monotonic()
    with ProcessPoolExecutor(min(processes, os.cpu_count() or 1), get_context("spawn")) as pool:
        rows = list(pool.map(measured, range(len(cases())), [device] * len(cases())))
    return {"rows": rows, "ok": all(row["ok"] for row in rows), "seconds": time.monotonic() - began}
