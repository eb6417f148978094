"""How long this process has been running, its interpreter's start included."""

import os
import time


def age() -> float:
    """Seconds since the process was started; where the system does not say, since it was first asked."""
    try:
        with open("/proc/self/stat") as stat:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _ASKED


_ASKED = time.monotonic()
