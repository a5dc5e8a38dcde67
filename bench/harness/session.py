"""One run: what was asked for, and the samples that it has taken."""

import time
from dataclasses import dataclass, field

from harness.install import say
from harness.stage import Stage, load, measure
from harness.subjects import Kit

# Below this share of idle time the machine itself decides how late a paced stream is.
IDLE_NEEDED = 0.15
TRIES = 2
# Measured in every round; the others in every second one, down to FEWEST rounds.
FIRST = ("direct", "nginx-mirror", "floor", "moriio-write", "moriio-read")
FEWEST = 5


@dataclass
class Session:
    """Rounds are for the scenes with targets; the others take half of them."""

    kit: Kit
    rounds: int = 10
    quick: bool = False
    subjects: list[str] | None = None
    samples: list[dict] = field(default_factory=list)

    def wanted(self, names: list[str]) -> list[str]:
        """Those of a scene's subjects that were asked for."""
        return [name for name in names if self.subjects is None or name in self.subjects]

    def seconds(self, length: float) -> float:
        return max(length * 0.4, 0.4) if self.quick else length

    @property
    def fewer(self) -> int:
        """Rounds of scenes without alternation over many subjects."""
        return min(self.rounds, FEWEST)

    def add(self, scene: str, case: str, subject: str, round_number: int, values: dict) -> None:
        self.samples.append({"scene": scene, "case": case, "subject": subject, "round": round_number, **values})
        failures = values.get("failures")
        if failures:
            say(f"bench: {scene} {case} {subject}: {failures} failures, the first: {values.get('first_failure')}")

    def alternate(self, scene: str, stages: dict[str, tuple[Stage, str]], *, case: str = "", rounds: int | None = None,
                  paced: bool = False, warm: bool = True, cases: bool = False, **options: object) -> None:
        """The same load on each subject in turn, in every round; a round begins with another subject each time.

        `stages` says for each column where its subject stands and what it is called there; the columns are subjects, or
        cases of one.
        """
        rounds = rounds or self.rounds
        begin = time.monotonic()
        if warm:
            for stage, name in stages.values():
                load(self.kit, stage.port(name), **(options | {"seconds": 0.2, "ramp": 0} | ({"tokens": 1} if paced else {})))
        for number in range(rounds):
            columns = list(stages.items())
            turn = number % len(columns)
            for column, (stage, name) in columns[turn:] + columns[:turn]:
                if name in FIRST or rounds <= FEWEST or number % 2 == 0:
                    sample = self._once(stage, name, paced, options)
                    self.add(scene, column if cases else case, name, number, sample)
        say(f"bench: {scene} {case}: {rounds} rounds in {time.monotonic() - begin:.0f} s")

    def _once(self, stage: Stage, name: str, paced: bool, options: dict) -> dict:
        for _ in range(1 if self.quick else TRIES):
            sample = measure(stage, name, **options)
            is_void = paced and sample["idle"] < IDLE_NEEDED
            if not is_void:
                break
        return sample | {"void": is_void}


def together(stage: Stage) -> dict[str, tuple[Stage, str]]:
    """All subjects of one stage as columns."""
    return {name: (stage, name) for name in stage.names}
