"""A trace of agents as aiperf's multi_turn datasets have it: each team has a system prompt, each agent a task, tools answer.

aiperf sends a session's turns one after the other, each with all turns and answers before it.
"""

import json
import random
from dataclasses import dataclass

AGENTS, TEAMS = 24, 6
# Bytes of text, of which four are a token of the simulated engines.
SYSTEM, TASK, TOOL = 12_000, 4_000, (1_600, 4_000)
TURNS, ANSWER = (4, 8), (8, 32)
# What a tool takes, in milliseconds.
PAUSE = (50, 400)
WORDS = "agent answer block build change class code error file find line list log name open path read run test".split()


@dataclass
class Trace:
    """The sessions as aiperf reads them, one a line of its file, and what a whole replay comes to."""

    sessions: list
    requests: int
    outputs: int

    def write(self, path):
        path.write_text("".join(f"{json.dumps(session)}\n" for session in self.sessions))
        return path


def make(seed):
    """The same trace for the same seed."""
    chance = random.Random(seed)
    # A first turn that is the system's and has nothing but a text is no request: aiperf puts it before all of the session.
    systems = [{"role": "system", "text": _text(chance, SYSTEM)} for _ in range(TEAMS)]
    agents = [[systems[number % TEAMS], *_turns(chance)] for number in range(AGENTS)]
    sessions = [{"session_id": f"agent-{number}", "turns": turns} for number, turns in enumerate(agents)]
    lengths = [turn["output_length"] for session in sessions for turn in session["turns"][1:]]
    return Trace(sessions, len(lengths), sum(lengths))


def _turns(chance):
    for number in range(chance.randint(*TURNS)):
        turn = {"text": _text(chance, chance.randint(*TOOL) if number else TASK), "output_length": chance.randint(*ANSWER)}
        yield {**turn, "delay": chance.randint(*PAUSE)} if number else turn


def _text(chance, size):
    """Words of which no two texts begin alike."""
    words = []
    while sum(map(len, words)) + len(words) < size:
        words.append(f"{chance.choice(WORDS)}{chance.randrange(1000)}")
    return " ".join(words)[:size]
