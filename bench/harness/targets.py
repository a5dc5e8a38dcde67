"""What is wanted, in one table, and whether a run had it."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from harness.figures import (
    Data, Figure, Series, difference, failed_percent, late, part, per_chunk, per_exchange, ratio, spread,
    under_way,
)
from harness.scenes import LARGE

WRITE, READ, MIRROR, FLOOR = "moriio-write", "moriio-read", "nginx-mirror", "floor"
# A target counts as reached up to here.
SLACK = 1.05
P50, GAP_P99 = part("first", "p50"), late("p99")


@dataclass
class Target:
    """A series that should not exceed a limit."""

    figure: str
    unit: str
    limit: float
    series: Callable[[Data], Series]

    def verdict(self, data: Data) -> str:
        values = self.series(data)
        if not values:
            return "not measured"
        middle = median(values.values())
        return "met" if middle <= self.limit else "within 5 %" if middle <= self.limit * SLACK else "missed"

    def row(self, data: Data) -> list[str]:
        return [self.figure, f"{spread(self.series(data))} {self.unit}".strip(), f"≤ {self.limit:g} {self.unit}".strip(),
                self.verdict(data)]


def against(scene: str, subject: str, other: str, figure: Figure, case: str = "") -> Callable[[Data], Series]:
    return lambda data: ratio(data.series(scene, subject, figure, case), data.series(scene, other, figure, case))


def value(scene: str, subject: str, figure: Figure, case: str = "") -> Callable[[Data], Series]:
    return lambda data: data.series(scene, subject, figure, case)


def added(data: Data, subject: str) -> Series:
    """Time to first output beyond that of an engine asked directly."""
    return difference(data.series("ttft", subject, P50), data.series("ttft", "direct", P50))


def peak(data: Data, subject: str) -> Series:
    """Memory at its peak, above rest, by the bytes of the bodies in flight."""
    rest = data.series("large", subject, part("resident_kb"), "rest").get(0)
    if rest is None:
        return {}
    peaks = data.series("large", subject, part("peak_kb"))
    return {number: (kb - rest) * 1024 / (16 * LARGE) for number, kb in peaks.items()}


def not_let_in(sample: dict) -> float:
    return sample["wanted"] - sample["open"]


def grown(data: Data, subject: str, case: str, key: str = "p999", beyond: str | None = None) -> Series:
    """How much longer a paced chunk is under way while bodies arrive, in milliseconds; beyond what another sees of that."""
    figure = under_way(key)
    own = difference(data.series("stall", subject, figure, case), data.series("stall", subject, figure, "0 MB"))
    return difference(own, grown(data, beyond, case, key)) if beyond else own


def larger_pool(subject: str) -> Callable[[Data], Series]:
    return lambda data: ratio(data.series("pool", subject, per_exchange, "16P16D dp 8"),
                              data.series("pool", subject, per_exchange, "2P2D"))


TARGETS = [
    Target("CPU per exchange, 1 KB, C=64, by nginx-mirror's", "×", 0.7, against("exchange", WRITE, MIRROR, per_exchange)),
    Target("the same by the floor's", "×", 3, against("exchange", WRITE, FLOOR, per_exchange)),
    Target("the same, READ by WRITE", "×", 1.15, against("exchange", READ, WRITE, per_exchange)),
    Target("CPU per chunk, no delay, C=32, by nginx-mirror's", "×", 1.05, against("chunk", WRITE, MIRROR, per_chunk)),
    Target("the same, READ by WRITE", "×", 1.15, against("chunk", READ, WRITE, per_chunk)),
    Target("CPU per chunk, 20 ms, C=64, by nginx-mirror's", "×", 1.2, against("paced", WRITE, MIRROR, per_chunk)),
    Target("the same, READ by WRITE", "×", 1.15, against("paced", READ, WRITE, per_chunk)),
    Target("CPU per exchange, 512 KB, C=16, by nginx-mirror's", "×", 1.4, against("large", WRITE, MIRROR, per_exchange)),
    Target("the same, READ by WRITE", "×", 1.15, against("large", READ, WRITE, per_exchange)),
    Target("peak memory by the bodies in flight, WRITE", "×", 1.2, lambda data: peak(data, WRITE)),
    Target("the same, READ", "×", 1.2, lambda data: peak(data, READ)),
    Target("an idle stream, WRITE", "KB", 16, value("idle_streams", WRITE, part("kb_each"))),
    Target("the same, READ", "KB", 16, value("idle_streams", READ, part("kb_each"))),
    Target("of 8,000 idle streams, not let in, WRITE", "", 0, value("idle_streams", WRITE, not_let_in)),
    Target("the same, READ", "", 0, value("idle_streams", READ, not_let_in)),
    Target("added time to first output, C=1, WRITE", "µs", 80, lambda data: added(data, WRITE)),
    Target("the same by the floor's", "×", 2, lambda data: ratio(added(data, WRITE), added(data, FLOOR))),
    Target("added time to first output, C=1, READ", "µs", 120, lambda data: added(data, READ)),
    Target("the same by that of a floor one leg after the other", "×", 2,
           lambda data: ratio(added(data, READ), added(data, "floor-serial"))),
    Target("idle, 4 engines pinging", "ms/s", 0.5, value("idle", WRITE, part("ms_per_s"), "4 engines")),
    Target("idle, 512 engines pinging", "ms/s", 10, value("idle", WRITE, part("ms_per_s"), "512 engines")),
    Target("16P16D of 8 ranks by 2P2D, WRITE", "×", 1.1, larger_pool(WRITE)),
    Target("the same, READ", "×", 1.1, larger_pool(READ)),
    Target("2,048 streams of 100 ms, failed, WRITE", "%", 0, value("streams2048", WRITE, failed_percent)),
    Target("the same, READ", "%", 0, value("streams2048", READ, failed_percent)),
    Target("their gap at p99 by direct's, WRITE", "×", 1.5, against("streams2048", WRITE, "direct", GAP_P99)),
    Target("the same, READ", "×", 1.5, against("streams2048", READ, "direct", GAP_P99)),
    Target("a paced chunk at p99.9 while 20 MB bodies arrive, beyond direct's, WRITE", "ms later", 2,
           lambda data: grown(data, WRITE, "20 MB", beyond="direct")),
    Target("the same, READ", "ms later", 2, lambda data: grown(data, READ, "20 MB", beyond="direct")),
    Target("resident at rest", "MB", 12, value("static", WRITE, part("resident_kb", scale=1 / 1024))),
    Target("the program", "MB", 12, value("static", WRITE, part("binary_bytes", scale=1 / 1048576))),
    Target("start to the first 200 of /health", "ms", 50, value("static", WRITE, part("start_ms"))),
]
