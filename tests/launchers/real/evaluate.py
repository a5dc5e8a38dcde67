"""lm-eval as vLLM's CI starts it, one prompt a request or several: its score, and every single answer."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engines import MODEL
from processes import offline, run

TASKS = Path(__file__).parent / "task"
# Engines compute in float32, and on some processors the last bits of a sum depend on what else is in the same step, which is
# chance. A token's share of -16 has bits of 1e-6 and a prompt has ten such; a token that is another moves it by tenths and more.
NOISE = 1e-4


@dataclass(frozen=True)
class Task:
    name: str
    metric: str
    file: str
    # Whether it asks for loglikelihoods: of a prompt's own tokens, so prefill answers alone.
    scores_prompts: bool = False

    def questions(self):
        return json.loads((TASKS / self.file).read_text())

    def prompts(self):
        """One a question, or one for each of its choices."""
        return sum(len(row.get("choices", [""])) for row in self.questions())

    def requests(self, batch):
        """How many requests hold how many prompts."""
        whole, rest = divmod(self.prompts(), batch)
        return +Counter({batch: whole, rest: 1 if rest else 0})


WRITTEN = Task("first_vowel", "exact_match,first-vowel", "questions.json")
SCORED = Task("likeliest_words", "acc,none", "choices.json", scores_prompts=True)


@dataclass(frozen=True)
class Form:
    """How prompts are sent: as lists of token ids, as lm-eval has it of itself, or as texts, as CI has it; and how many in one."""

    tokens: bool
    batch: int

    def __str__(self):
        return ("tokens" if self.tokens else "texts") + (f" by {self.batch}" if self.batch > 1 else "")


@dataclass
class Evaluation:
    score: float
    # What was asked, and an answer for every prompt: a text, or a loglikelihood with whether its words are the likeliest.
    answers: dict

    def count(self):
        return sum(len(given) for _, given in self.answers.values())

    def unequal(self, other):
        """Numbers of the questions that were not answered alike, or not asked alike."""
        both = self.answers.keys() | other.answers.keys()
        return sorted(number for number in both if not alike(self.answers.get(number), other.answers.get(number)))

    def distance(self, other):
        """The most that a loglikelihood is off, of those that both have."""
        both = [(self.answers[number][1], other.answers[number][1]) for number in self.answers.keys() & other.answers.keys()]
        pairs = [(one[0], two[0]) for ones, twos in both for one, two in zip(ones, twos, strict=False)]
        return max((abs(one - two) for one, two in pairs), default=0.0)


def alike(one, other):
    """Equal, but for the noise in numbers; what is no number or missing is like nothing else."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= NOISE
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other


def evaluate(python, url, tokenizer, folder, task, form):
    """Asks all prompts of a task at `url`, 64 requests at once. Raises OSError when lm-eval comes to no score."""
    folder.mkdir(parents=True)
    arguments = f"model={MODEL},base_url={url}/v1/completions,num_concurrent=64,max_retries=3,tokenizer={tokenizer}"
    arguments += "" if form.tokens else ",tokenized_requests=False"
    command = [
        python, "-m", "lm_eval", "--model", "local-completions", "--tasks", task.name, "--include_path", TASKS,
        "--model_args", arguments, "--batch_size", str(form.batch), "--output_path", folder, "--log_samples",
    ]  # fmt: skip
    environment = {**offline(), "HF_HOME": str(folder / "hub")}
    code, said = run(command, folder / "log", 1200, cwd=TASKS, env=environment)
    if code != 0:
        raise OSError(f"lm_eval ended with {code}: {said.strip()[-500:]}")
    (results,), (samples,) = folder.rglob("results_*.json"), folder.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = {row["doc_id"]: (asked(row), tuple(answer(given, task) for given in row["resps"])) for row in rows}
    return Evaluation(json.loads(results.read_text())["results"][task.name][task.metric], answers)


def asked(row):
    """The digests of the prompt, and of the question with its choices."""
    return row["prompt_hash"], row["doc_hash"]


def answer(given, task):
    """One prompt's answer out of a sample, where everything is text."""
    if not task.scores_prompts:
        return tuple(given)
    ((likelihood, greedy),) = given
    return float(likelihood), greedy
