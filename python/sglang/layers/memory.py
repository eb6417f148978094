"""How much memory is free."""

import os

import torch


def free_bytes(device: torch.device) -> float:
    """Of the device; of RAM on a CPU, within what a container may take."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return float(min(free, _cgroup_free()))


def _cgroup_free() -> float:
    """What a container's limit leaves; infinity outside one."""
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            text = limit.read().strip()
            return float("inf") if text == "max" else float(text) - float(used.read())
    except (OSError, ValueError):
        return float("inf")
