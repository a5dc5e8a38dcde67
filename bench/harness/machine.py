"""What the kernel says of processes and of the machine."""

import os
import platform
import time
from pathlib import Path


def children(pid: int) -> list[int]:
    """A process and those it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [one for child in (task / "children").read_text().split() for one in children(int(child))]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time so far, of threads that have ended as well: each process's own clock, in nanoseconds."""
    return sum(time.clock_gettime((~pid) << 3 | 2) for pid in pids)


def cpu_ticks(pids: list[int]) -> int:
    """The same in clock ticks, as /proc/PID/stat has it."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields)


def memory_kb(pids: list[int], field: str) -> int:
    """VmRSS or VmHWM."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
    return total


def switches(pids: list[int]) -> int:
    """Context switches of all threads that live, of their own will or not."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            lines = (task / "status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


def forget_peak(pids: list[int]) -> None:
    """Lets VmHWM begin again at what is resident."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def processor_times() -> tuple[int, int]:
    """Ticks in which no processor had work, and all of them. Waiting for a disk is idle; what a host takes is not."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


class Idle:
    """The share of idle time since it was made."""

    def __init__(self) -> None:
        self.begin = processor_times()

    def share(self) -> float:
        idle, total = processor_times()
        return (idle - self.begin[0]) / max(total - self.begin[1], 1)


def facts() -> dict[str, object]:
    """The machine, as results name it."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "memory_mb": int(memory) // 1024,
        "kernel": platform.release(),
        "system": next(
            (line.split("=", 1)[1].strip('"') for line in Path("/etc/os-release").read_text().splitlines()
             if line.startswith("PRETTY_NAME=")),
            platform.system(),
        ),
    }
