"""What the page of tables says of methods that had ten minutes each: what they are, and where a baseline is ahead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

_OWN = "own"
_METHODS = {
    _OWN: "**own** is `enma-fast train FILE --minutes 10` before version 0.2 trained field models; *Your own data* has "
    "those. Its ten minutes are by the clock. They include planning, tokenizer and scoring, and a fifth of the data is "
    "kept for validation and test",
    "fno": "*fno*, a Fourier neural operator, had 600 s of processor time and is deterministic",
    "transformer": "*transformer*, block-causal on patches of the fields, had the same time and is deterministic",
    "latent-flow": "*latent-flow* had the same time and decides whole latent frames by a flow. It has the tokenizer of "
    "the shipped model, whose training is not counted",
    "gino": "*gino* had the same time and is deterministic. It makes fields of scattered points for an FNO, and both "
    "were trained together",
}
# Why a baseline can have a lower error than **own**.
_REASONS = {
    "fno": "*fno* trains on fields from its first step to its last. **own** planned, encoded, trained three stages and "
    "scored, so on a large plane each stage had a few steps",
    "latent-flow": "*latent-flow* has a tokenizer whose training is not counted",
    "transformer": "*transformer* trains in one stage",
    "gino": "*gino* trains in one stage",
}


def introduction(methods: Collection[str]) -> str:
    """What each of these methods is and how long it had."""
    listed = "\n".join(f"* {words}." for method, words in _METHODS.items() if method in methods)
    return (
        "The same errors after ten minutes of training on one thread, with the same file of training data. "
        f"With several seeds, a cell is their mean ± their standard deviation.\n\n{listed}"
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
    reasons = ". ".join(_REASONS[method] for method in lower if method in _REASONS)
    return f"Baselines with a lower error than **own**: {'; '.join(where)}. Reasons: {reasons}."
