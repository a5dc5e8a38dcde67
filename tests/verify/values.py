"""Ordinary and odd values of a request's fields: what is added to a good request, one addition at a time."""

import json

from odd import COMMON, FLAGS, GIVEN, OWN, Also, prompts

TEXTS = ["x", "", "x" * 300]
NUMBERS = [0, 1, 2, -1, 0.5, 1e9, 2**63, 2**70]
# What is neither the right kind nor what lenient readers turn into it.
WRONG = {
    "string": "nonsense",
    "integer": 3,
    "number": 2.5,
    "boolean": True,
    "array": ["nonsense"],
    "object": {"nonsense": 1},
}


def additions(api, listed, given):
    """What to add to a plain request of `api` for the field `listed`: the telling values first, `null` last."""
    name = listed.name
    seen, result = set(), []
    for value in _special(api, name.rpartition(".")[2] if api.inside else name, given) + _ordinary(listed) + [None]:
        addition = value if isinstance(value, Also) else Also(name, value)
        if api.inside:
            addition = addition.within(api, name)
        key = json.dumps(addition.fields, sort_keys=True)
        if key not in seen:
            seen.add(key)
            result.append(addition.fields)
    return [_limited(api, addition, given) for addition in result]


def _limited(api, addition, given):
    """An answer without a limit ends where its text says a certain thing: nobody has time for all that a model takes."""
    place = {name.rpartition(".")[2]: value for name, value in addition.items()}
    huge = any(name in api.limits and (value is None or _big(value)) for name, value in place.items())
    return {**addition, api.stop: [given.middle]} if huge and given.middle else addition


def _big(value):
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value > 64


def _ordinary(listed):
    """By the kinds that the engine lists."""
    kinds, values = listed.kinds, list(listed.choices)
    if listed.choices:
        values.append("nonsense")
    elif "string" in kinds:
        values += TEXTS
    if "boolean" in kinds:
        values += FLAGS
    if "integer" in kinds or "number" in kinds:
        values += NUMBERS + ["1", True]
        values += [
            bound + step for bound, step in ((listed.least, -1), (listed.least, 0), (listed.most, 1)) if bound is not None
        ]
    if "array" in kinds:
        values += [[], [{}], [[]], [1], ["x"], [None]]
    if "object" in kinds or "any" in kinds:
        values += [{}, {"a": 1}, {"a": {"b": None}}]
    values += [value for kind, value in WRONG.items() if kind not in kinds][:2]
    return values


def _special(api, name, given):
    """What is known of a field by its name."""
    values = list(COMMON.get(name, ())) + list(OWN.get((api.name, name), ()))
    for value in GIVEN.get(name, ()):
        values.append(value(given))
    if name == api.prompt:
        values += prompts(api, given)
    return values
