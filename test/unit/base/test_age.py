"""The age of a process counts what came before its first line of Python."""

import subprocess
import sys
import time

from sglang.base.age import age


def test_a_process_is_older_than_its_program() -> None:
    code = "import time; time.sleep(0.3); from sglang.base.age import age; print(age())"
    began = time.monotonic()
    said = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.29 < said < time.monotonic() - began + 0.05


def test_it_grows() -> None:
    first = age()
    time.sleep(0.05)
    assert 0.03 < age() - first < 100  # seconds, and not what else a clock may count
