"""lm-eval as vLLM's CI starts it: its score, and every single answer."""

import json
from dataclasses import dataclass
from pathlib import Path

from engines import MODEL
from processes import offline, run

TASKS = Path(__file__).parent / "task"
TASK, METRIC = "first_vowel", "exact_match,first-vowel"


@dataclass
class Evaluation:
    score: float
    # Prompt's digest and answer, by number of the question.
    answers: dict

    def unequal(self, other):
        """Numbers of the questions that were not answered alike, or not asked alike."""
        both = self.answers.keys() | other.answers.keys()
        return sorted(number for number in both if self.answers.get(number) != other.answers.get(number))


def evaluate(python, url, tokenizer, folder, tokens):
    """Asks every question at `url`, 64 at once: prompts are texts, as CI has it, or with `tokens` lists of token ids, as
    lm-eval has it of itself. Raises OSError when it comes to no score."""
    folder.mkdir(parents=True)
    arguments = f"model={MODEL},base_url={url}/v1/completions,num_concurrent=64,max_retries=3,tokenizer={tokenizer}"
    arguments += "" if tokens else ",tokenized_requests=False"
    command = [
        python, "-m", "lm_eval", "--model", "local-completions", "--tasks", TASK, "--include_path", TASKS,
        "--model_args", arguments, "--output_path", folder, "--log_samples",
    ]  # fmt: skip
    environment = {**offline(), "HF_HOME": str(folder / "hub")}
    code, said = run(command, folder / "log", 1200, cwd=TASKS, env=environment)
    if code != 0:
        raise OSError(f"lm_eval ended with {code}: {said.strip()[-500:]}")
    (results,), (samples,) = folder.rglob("results_*.json"), folder.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = {row["doc_id"]: (row["prompt_hash"], row["resps"]) for row in rows}
    return Evaluation(json.loads(results.read_text())["results"][TASK][METRIC], answers)
