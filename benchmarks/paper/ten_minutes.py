"""What the page of tables says of methods that had ten minutes each: what they are, and where a baseline is ahead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

_OWN = "own"
_METHODS = {
    _OWN: "**own** is what `enma-fast train FILE --minutes 10` made of it before version 0.2 trained field models "
    "(those are measured on the page *Your own data*), its tokenizer, planning and scoring included (minutes by the "
    "clock, and a fifth of the trajectories kept for validation and test)",
    "fno": "*fno*, a Fourier neural operator, had 600 s of processor time and is deterministic",
    "transformer": "so is *transformer*, block-causal on patches of the fields, with as much time",
    "latent-flow": "*latent-flow* had as much and decides whole latent frames by a flow, behind the tokenizer of "
    "the shipped model, whose training is not counted",
    "gino": "*gino* had as much, is deterministic too, and makes fields of scattered points for an FNO, both "
    "trained together",
}
# Why a baseline can have a lower error than **own**.
_REASONS = {
    "fno": "*fno* trains on fields from its first step to its last, where **own** planned, encoded, trained "
    "three stages one after another, and scored: of a large plane each had a few steps",
    "latent-flow": "*latent-flow* has a tokenizer whose training is not counted",
    "transformer": "*transformer* trains in one stage",
    "gino": "*gino* trains in one stage",
}


def introduction(methods: Collection[str]) -> str:
    """What each of these methods is and how long it had."""
    said = "; ".join(words for method, words in _METHODS.items() if method in methods)
    return (
        "The same errors where every method had ten minutes of one thread to train in, with the same file of training "
        f"data: {said}. Where there are several seeds, a cell is their mean ± their standard deviation."
    )


def where_ahead(errors: Mapping[tuple[str, str, str], float], *, name: Callable[[str], str]) -> str:
    """Where baselines have lower errors than **own**, and why; empty where none has.

    `errors` are by equation, split and method; `name` gives the name of an equation.
    """
    splits = {"test-in": "in", "test-out": "out of"}
    lower: dict[str, dict[str, list[str]]] = {}
    for (equation, split, method), value in errors.items():
        own = errors.get((equation, split, _OWN))
        if method != _OWN and own is not None and value < own:
            lower.setdefault(method, {}).setdefault(equation, []).append(splits[split])
    if not lower:
        return ""
    where = [
        f"*{method}* on " + ", ".join(f"{name(e)} ({' and '.join(s)} distribution)" for e, s in equations.items())
        for method, equations in lower.items()
    ]
    return (
        f"Baselines with a lower error than **own**: {'; '.join(where)}. "
        f"Reasons: {'; '.join(_REASONS[method] for method in lower if method in _REASONS)}."
    )
