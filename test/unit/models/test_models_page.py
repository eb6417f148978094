"""docs/models.md lists what there is; its figures are those of the last `make parity`."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "scripts"))

from gpu_parity import FARTHER  # noqa: E402

import parity  # noqa: E402

PAGE = (ROOT / "docs" / "models.md").read_text()
CASE = r"^\| \[(\w+)\]\S+ \| (.+?) \| (transformers|written out) \| (\S+) \| (\w+) \| (\S.* \| \S+) \|$"
ROWS = re.findall(CASE, PAGE, re.M)


def test_every_case_is_listed_with_a_difference_below_the_bound() -> None:
    assert [row[:3] for row in ROWS] == [case[:3] for case in parity.cases()]
    for module, name, _, worst, greedy, _ in ROWS:
        assert float(worst) < 1e-4 and greedy == "equal", (module, name)


def test_figures_of_a_gpu_are_those_of_its_last_run() -> None:
    there = parity.on_gpu()
    for module, name, *_, cells in ROWS:
        assert cells == there.get((module, name), parity.NOT_THERE), "`scripts/parity.py --keep` renews the page"


def test_bfloat16_on_a_gpu_is_as_far_off_as_the_type_is() -> None:
    for ours, theirs in re.findall(r"\| (\d\S+) / (\d\S+) \| \d+ \|$", PAGE, re.M):
        assert float(ours) < FARTHER * float(theirs) + 1e-3


def test_every_case_of_vectors_is_listed_with_a_difference_below_the_bound() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\S+ \| ([^|]+?) \| ([^|]+?) \| (\d\S+) \|$", PAGE, re.M)
    assert [row[:3] for row in rows] == [(m, name, parity.pooling_of(name)) for m, name in parity.vector_cases()]
    for *_, worst in rows:
        assert float(worst) < 1e-5


def test_the_table_of_lines_is_current_and_families_stay_small() -> None:
    assert PAGE.endswith(parity.sizes()), "`make parity` writes the page"
    median = re.search(r"Median of lines per family: (\d+); most: (\d+)", PAGE)
    assert median is not None and int(median[1]) <= 30 and int(median[2]) <= 120


@pytest.mark.parametrize("module", parity.lines())
def test_every_family_has_a_case(module: str) -> None:
    assert any(module == known for known, *_ in (*parity.cases(), *parity.vector_cases()))
