"""From samples to figures: a value for each round, their median and its interval."""

from collections.abc import Callable
from math import comb
from statistics import median

Sample = dict
Figure = Callable[[Sample], float | None]
Series = dict[int, float]
CONFIDENCE = 0.95


class Data:
    """The samples of a run by scene, case and subject."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.places: dict[tuple[str, str, str], dict[int, Sample]] = {}
        for sample in samples:
            place = (sample["scene"], sample["case"], sample["subject"])
            self.places.setdefault(place, {})[sample["round"]] = sample

    def subjects(self, scenes: set[str]) -> set[str]:
        return {subject for scene, _, subject in self.places if scene in scenes}

    def series(self, scene: str, subject: str, figure: Figure, case: str = "") -> Series:
        """A figure's value in each round in which it has one."""
        rounds = self.places.get((scene, case, subject), {})
        values = {number: figure(sample) for number, sample in rounds.items()}
        return {number: value for number, value in values.items() if value is not None}

    def void(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.get("void")]


def combine(one: Series, other: Series, how: Callable[[float, float], float]) -> Series:
    """Round by round, where both have a value."""
    return {number: how(one[number], other[number]) for number in one.keys() & other.keys()}


def ratio(one: Series, other: Series) -> Series:
    return combine(one, {number: value for number, value in other.items() if value}, lambda a, b: a / b)


def difference(one: Series, other: Series) -> Series:
    return combine(one, other, lambda a, b: a - b)


def interval(values: list[float]) -> tuple[float, float]:
    """Where the median lies with 95 %, whatever the distribution; all values where they are too few for that."""
    ordered, left = sorted(values), 0
    outside = 0.0
    for place in range(len(ordered) // 2):
        outside += 2 * comb(len(ordered), place) / 2 ** len(ordered)
        if 1 - outside < CONFIDENCE:
            break
        # So many values on either side may go.
        left = place
    return ordered[left], ordered[-1 - left]


def number(value: float) -> str:
    """Three digits, as far as they say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(series: Series) -> str:
    """A median with its interval."""
    if not series:
        return "–"
    values = list(series.values())
    low, high = interval(values)
    if number(low) == number(high):
        return number(median(values))
    return f"{number(median(values))} ({number(low)} to {number(high)})"


def per_exchange(sample: Sample) -> float | None:
    return sample["cpu"] * 1e6 / sample["requests"] if sample.get("requests") and sample.get("cpu") else None


def per_chunk(sample: Sample) -> float | None:
    return sample["cpu"] * 1e6 / sample["chunks"] if sample.get("chunks") and sample.get("cpu") else None


def part(*keys: str, scale: float = 1) -> Figure:
    """What stands in a sample at these keys."""
    def read(sample: Sample) -> float | None:
        value: object = sample
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value * scale if isinstance(value, (int, float)) else None
    return read


def late(key: str) -> Figure:
    """Milliseconds between two chunks. A machine without idle time decides itself how late a chunk is: such rounds are void."""
    return _unless_void(part("gap", key, scale=1e-3))


def under_way(key: str) -> Figure:
    """Milliseconds from an engine's write of a chunk to the client's read, void like gaps."""
    return _unless_void(part("delay", key, scale=1e-3))


def _unless_void(read: Figure) -> Figure:
    return lambda sample: None if sample.get("void") else read(sample)


def per(key: str, unit: str, scale: float = 1) -> Figure:
    """One part of a sample by another."""
    return lambda sample: sample[key] * scale / sample[unit] if sample.get(key) is not None and sample.get(unit) else None


def failed_percent(sample: Sample) -> float | None:
    return 100 * sample["failures"] / sample["requests"] if sample.get("requests") else None
