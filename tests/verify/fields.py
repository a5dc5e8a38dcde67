"""Every field of every API, one at a time, with ordinary and odd values, whole and streamed: whatever a client adds to a
good request, no engine may end, go deaf, keep a block, or answer another text than the undivided engine would."""

import itertools
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import apis
import listed
import odd
import restarts
import texts
import values

BATCH = 32
TOKENS = 8
# Fields that have ended engines or may: after all others, so that the culprit needs little search.
SUSPECTS = {
    "echo",
    "ec_transfer_params",
    "extra_args",
    "kv_transfer_params",
    "output_kind",
    "prompt_embeds",
    "prompt_logprob_start",
    "prompt_logprob_token_ids",
    "prompt_logprobs",
    "prompt_token_ids",
    "skip_reading_prefix_cache",
    "trace_decode_token_ids",
    "vllm_xargs",
}
# What an answer has of its own each time, or what a pair counts in another way than one engine.
OWN = {
    "id",
    "created",
    "created_at",
    "completed_at",
    "system_fingerprint",
    "kv_transfer_params",
    "ec_transfer_params",
    "metrics",
    "prompt_tokens_details",
    "input_tokens_details",
    "call_id",
    "request_id",
}
COLUMNS = ["cases", "equal", "by proxy", "by engine", "more", "left out", "skipped", "trouble"]


@dataclass
class Case:
    """One request: a field, what is added to a good request, and whether it is streamed."""

    api: apis.Api
    field: str
    addition: dict
    body: dict

    def suspect(self):
        return any(name.rpartition(".")[2] in SUSPECTS for name in (self.field, *self.addition))

    def __str__(self):
        said = json.dumps(self.addition)
        said = said if len(said) <= 160 else f"{said[:120]} … {len(said)} bytes"
        return f"{said}{' streamed' if self.body.get('stream') is True else ''}"


class Stuck(Exception):
    """The engines are in a state from which only a restart would help."""


class Field:
    """The counts of one field."""

    def __init__(self):
        self.counts = dict.fromkeys(COLUMNS, 0)

    def add(self, column, number=1):
        self.counts[column] += number


def of_api(world, api):
    """The check for one API."""
    if reason := apis.served(world, api):
        return True, f"skipped: {reason}"
    run = Run(world, api)
    cases, named = run.cases()
    begun, done = time.monotonic(), 0
    try:
        for batch in batches(cases):
            run.batch(batch)
            done += len(batch)
    except Stuck as stuck:
        run.notes.append(f"{len(cases) - done} cases not tried: {stuck}")
        run.stuck = True
    finally:
        run.print(named)
    total = {column: sum(field.counts[column] for field in run.table.values()) for column in COLUMNS}
    detail = ", ".join(f"{number} {column}" for column, number in total.items() if number)
    seconds = time.monotonic() - begun
    detail += f"; {len(run.table)} fields {named}; {run.restarts} restarts; {seconds / max(1, done):.2f} s a case"
    return not total["trouble"] and not run.stuck, detail


def batches(cases):
    """Many cases at once where no harm is expected. Where it is, one field at a time, its most telling value alone."""
    tame = [case for case in cases if not case.suspect()]
    yield from (tame[at : at + BATCH] for at in range(0, len(tame), BATCH))
    bold = [case for case in cases if case.suspect()]
    for _, group in itertools.groupby(bold, lambda case: case.field):
        group = list(group)
        yield from ([case] for case in group[:2])
        yield from (group[at : at + BATCH] for at in range(2, len(group), BATCH))


class Run:
    """The cases of one API against a pair that is looked after between them."""

    def __init__(self, world, api):
        self.world, self.api = world, api
        self.limit = min(world.limit, world.field_limit)
        self.table, self.bitten, self.notes, self.refused, self.restarts, self.stuck = {}, set(), [], [], 0, False
        rng = texts.generator(world.seed + 8)
        self.canaries = []
        for number in range(4):
            path, body = texts.request(rng, world.model, number, tokens=TOKENS, words=(60, 20)[number // 2])
            self.canaries.append((path, body, self.single(path, apis.of(path), body)))
        self.base, self.given = self._base(rng)
        self.rest, self.starts = world.cluster.at_rest(), world.cluster.starts()

    def single(self, path, api, body):
        if self.world.budget == "minus-one":
            body = api.budgeted(body)
        return self.world.single.ask(path, body, self.limit)

    def _base(self, rng):
        """A prompt of some blocks that the model answers at full length, and what values need to know of it."""
        world, api = self.world, self.api
        for _ in range(20):
            text = texts.prompt(rng, 50)
            prompt = apis.prompt_for(api, world.single, world.model, text)
            answer = world.single.ask(api.path, api.request(world.model, prompt, TOKENS), self.limit)
            if answer.status == 200 and (answer.usage or ("", TOKENS))[1] == TOKENS:
                break
        else:
            raise OSError(f"the undivided engine gives no full answer for {api.name}: {answer.content()} {answer.message}")
        # The texts of an API of token ids are those of completions, whose token ids an engine tells when asked for.
        plain = apis.COMPLETIONS.request(world.model, text, TOKENS)
        plain = world.single.ask("/v1/completions", {**plain, "return_token_ids": True}, self.limit)
        said = (plain if api is apis.GENERATE else answer).text
        words = [said[at : at + 3] for at in range(len(said) // 2, len(said) - 2)]
        middle = next((word for word in words if word.isascii() and word.isprintable()), "")
        tokens = apis.tokens_of(world.single, world.model, text)
        first = ((plain.rest or {"choices": [{}]})["choices"][0].get("token_ids") or tokens)[:1]
        long = " ".join([text] * 200)
        too_long = api.request(world.model, apis.prompt_for(api, world.single, world.model, long), 1)[api.prompt]
        return prompt, odd.Given(middle, tokens, first, long, {api.prompt: too_long})

    def cases(self):
        """All cases in the order of the engine's list, and who listed the fields."""
        world, api = self.world, self.api
        fields, by_engine = listed.fields(world.cluster.engines[0].server, api)
        fields += [listed.Field(name) for name in odd.UNLISTED[api.name]]
        result = []
        for field in fields:
            if world.fields and not field.name.startswith(world.fields):
                continue
            additions = values.additions(api, field, self.given)
            if world.values:
                additions = additions[: world.values]
            self.table[field.name] = Field()
            for addition in additions:
                for stream in (False, True):
                    plain = api.request(world.model, self.base, TOKENS, stream)
                    if not (stream and "stream" in addition):
                        result.append(Case(api, field.name, addition, api.merged(plain, addition)))
        return result, "by the engine's list" if by_engine else "by the list of 0.32.0"

    def batch(self, cases):
        """Several cases at once; only where something is wrong each of them alone."""
        cases = [case for case in cases if not self._skipped(case)]
        if len(cases) == 1:
            self.alone(cases[0], self._want(cases[0]))
        if len(cases) < 2:
            return
        with ThreadPoolExecutor(self.world.concurrency) as pool:
            wants = list(pool.map(self._want, cases))
            self._single_works(cases, wants)
            gots = list(pool.map(lambda case: self.world.proxy.ask(case.api.path, case.body, self.limit), cases))
        verdicts = [self.judge(case, want, got) for case, want, got in zip(cases, wants, gots)]
        trouble = self.trouble()
        suspects = [case for case, (column, _) in zip(cases, verdicts) if column == "trouble"]
        if not trouble:
            for case, (column, said) in zip(cases, verdicts):
                if column != "trouble":
                    self.count(case, column, said)
        else:
            self.world.note(f"{self.api.name}, one of {', '.join(dict.fromkeys(case.field for case in cases))}: {trouble}")
            self.recover(trouble)
            # Those whose own answer was wrong come first: they are the likely ones, and fields that are known are skipped.
            suspects += [case for case in cases if case not in suspects]
        found = 0
        for case in suspects:
            found += self.alone(case, wants[cases.index(case)])
        if trouble and not found:
            self.notes.append(f"only in company: {trouble}; among {', '.join(sorted({case.field for case in cases}))}")
            self.table[cases[0].field].add("trouble")

    def _want(self, case):
        """What the undivided engine says; the first requests of a kind may find it busy with its own preparations."""
        want = self.single(case.api.path, case.api, case.body)
        return self.single(case.api.path, case.api, case.body) if want.trouble.startswith("no end") else want

    def _skipped(self, case):
        # A field that has harmed the engines is known: its other values would only cost restarts.
        if not self.bitten.intersection([case.field, *case.addition]):
            return False
        self.table[case.field].add("cases")
        self.table[case.field].add("skipped")
        return True

    def alone(self, case, want):
        """One case with nothing beside it, then a look at the engines. True if it did harm."""
        if self._skipped(case):
            return False
        self._single_works([case], [want])
        got = self.world.proxy.ask(case.api.path, case.body, self.limit)
        column, said = self.judge(case, want, got)
        if column == "trouble" and not self._steady(case, want):
            column = "left out"
        trouble = self.trouble()
        if trouble:
            column, said = "trouble", f"{f'{said}; ' if column == 'trouble' else f'answered {got.status}; '}then {trouble}"
        self.count(case, column, said)
        if trouble:
            self.bitten.add(case.field)
            self.recover(trouble)
        return bool(trouble)

    def _steady(self, case, want):
        """Whether the undivided engine itself has one answer to this."""
        again = [self.single(case.api.path, case.api, case.body) for _ in range(3)]
        return all(answer.content() == want.content() and not differs(want.rest, answer.rest) for answer in again)

    def _single_works(self, cases, wants):
        """An undivided engine that ends is no measure of anything."""
        late = [case for case, want in zip(cases, wants) if want.trouble and want.trouble != "error event"]
        path, body, want = self.canaries[0]
        if late and self.single(path, apis.of(path), body).content() != want.content():
            raise Stuck(f"the undivided engine itself does not answer after one of {'; '.join(map(str, late))[:1000]}")

    def count(self, case, column, said):
        self.table[case.field].add("cases")
        self.table[case.field].add(column)
        if column in ("trouble", "more") or column in ("by proxy", "by engine") and said:
            (self.notes if column == "trouble" else self.refused).append((case.field, str(case), said))
        if column == "trouble":
            self.world.note(f"{case.api.name} {case}: {said}")

    def judge(self, case, want, got):
        """What an answer is, by the undivided engine's: the column of the table, and what is to be said of it."""
        if got.trouble:
            late = got.trouble == "error event" and want.status >= 400
            if late or want.trouble == got.trouble and not got.trouble.startswith("no end"):
                return "by engine", ""
            return "trouble", f"{got.trouble} {got.message}"
        accepted = want.status == 200 and not want.trouble
        if got.status == 200:
            if not accepted:
                return "more", f"answered; the undivided engine: {want.status} {want.trouble} {brief(want)}"
            if got.content() != want.content():
                return "trouble", f"{got.content()} for {want.content()}"
            if different := differs(want.rest, got.rest):
                return "trouble", f"same text, other {different}"
            return "equal", ""
        # A failure of the engine that the undivided one tells in its stream, or has as well.
        if got.status >= 500 and not accepted and (want.trouble or want.status >= 500):
            return "by engine", ""
        if not 400 <= got.status < 500:
            return "trouble", f"{got.status} by {got.source} {brief(got)} for {want.status} {brief(want)}"
        column = "by proxy" if got.source in ("client", "proxy") else "by engine"
        if column == "by proxy" or accepted:
            names = {name.rpartition(".")[2] for name in [case.field, *case.addition]}
            if not any(name in got.message for name in names):
                return (
                    "trouble",
                    f"{got.status} by {got.source} names no field: {brief(got)}; the undivided engine: {want.status}",
                )
        said = f"{got.status} by {got.source or 'somebody'}: {brief(got)}" if accepted else ""
        return column, said

    def trouble(self):
        """What is wrong with the engines now; empty if nothing is."""
        for path, body, want in self.canaries:
            got = self.world.proxy.ask(path, body, self.limit)
            if got.content() != want.content():
                return f"a good request: {got.status} {got.trouble or got.message or got.text!r}; {self._diagnosis()}"
        clean, seconds, held = self.world.cluster.settle(self.rest, self.world.settle)
        if not clean:
            return f"HELD after {seconds:.1f} s: {held}"
        if self.world.cluster.starts() != self.starts:
            return f"an engine was started anew: {self._diagnosis()}"
        return ""

    def _diagnosis(self):
        said = []
        for engine in self.world.cluster.engines:
            if not engine.alive():
                said.append(f"{engine.role} is dead")
                continue
            body = {"model": self.world.model, "prompt": "a b c", "max_tokens": 2, "temperature": 0}
            plain = engine.server.ask("/v1/completions", body, min(10, self.limit))
            said.append(f"{engine.role} {'works alone' if plain.status == 200 else 'answers nobody'}")
        return ", ".join(said)

    def recover(self, trouble):
        """Brings the pair back to where the next case may be judged: by time, else by the operator's commands."""
        restarts_wanted = len(self.world.commands) == 2
        # A breaker closes again, and what is only held may be freed by prefill's timer.
        if self._clean_within(20 if restarts_wanted else 75):
            return
        if not restarts_wanted:
            raise Stuck(f"{trouble}; with --restart-prefill and --restart-decode this could go on")
        self._restart()

    def _restart(self):
        """The first engine of each role, one after the other until a good request is answered again."""
        world = self.world
        self.restarts += 1
        first = {engine.role: engine for engine in reversed(world.cluster.engines)}
        for role in ("prefill", "decode"):
            if said := restarts.again(world, first[role], world.commands[role]):
                raise Stuck(said)
            if first["decode"].alive() and self._answers(30) and world.cluster.settle(self.rest, world.settle)[0]:
                break
        else:
            raise Stuck("no good answer, or something held, after both engines were restarted")
        self.starts = world.cluster.starts()

    def _answers(self, limit):
        deadline = time.monotonic() + limit
        path, body, want = self.canaries[0]
        while time.monotonic() < deadline:
            if self.world.proxy.ask(path, body, 10).content() == want.content():
                return True
            time.sleep(0.5)
        return False

    def _clean_within(self, limit):
        return self._answers(limit) and self.world.cluster.settle(self.rest, limit)[0] and not self.trouble()

    def print(self, named):
        """The table, what is answered otherwise than by the undivided engine, and the trouble."""
        width = max(map(len, self.table), default=5)
        lines = [f"{self.api.path}, fields {named}"]
        lines.append(f"{'field':<{width}} " + " ".join(f"{column:>{max(5, len(column))}}" for column in COLUMNS))
        for name, field in self.table.items():
            counts = (f"{number or '-':>{max(5, len(column))}}" for column, number in field.counts.items())
            lines.append(f"{name:<{width}} " + " ".join(counts))
        if self.refused:
            lines.append("answered otherwise than by the undivided engine, without harm:")
        lines += [f"  {name}: {case}: {said}" for name, case, said in self.refused]
        if self.notes:
            lines.append("trouble:")
        lines += [f"  {note if isinstance(note, str) else ': '.join(note)}" for note in self.notes]
        for line in lines:
            print(f"     {line}", flush=True)


def brief(answer):
    """The message of an error in either API's shape, else its beginning."""
    try:
        error = json.loads(answer.message)["error"]
        said = error["message"] if isinstance(error, dict) else error
        param = error.get("param") if isinstance(error, dict) else None
        return f"{said[:160]!r}" + (f" (param {param})" if param else "")
    except (ValueError, KeyError, TypeError):
        return repr(answer.message[:160])


def differs(want, got, path=""):
    """Where two answers differ beside what each has of its own: a path, or nothing. Numbers may differ a little."""
    if isinstance(want, dict) and isinstance(got, dict):
        for name in sorted((want.keys() | got.keys()) - OWN):
            # A server that leaves out what is null says the same.
            if found := differs(want.get(name), got.get(name), f"{path}.{name}"):
                return found
        return ""
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return next(filter(None, (differs(a, b, f"{path}[{at}]") for at, (a, b) in enumerate(zip(want, got)))), "")
    if isinstance(want, float) and isinstance(got, (int, float)):
        return "" if math.isclose(want, got, rel_tol=0.02, abs_tol=0.02) else f"{path}: {got} for {want}"
    return "" if want == got else f"{path or 'answer'}: {str(got)[:80]!r} for {str(want)[:80]!r}"
