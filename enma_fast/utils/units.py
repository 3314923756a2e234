"""Units as texts: two spellings of one unit are equal, such as `m s-1` and `m/s`, or `K` and `kelvin`.

Nothing is converted: `hPa` and `mbar` are different texts, and so are `J kg-1` and `m2 s-2`.
"""

from __future__ import annotations

import re
from collections import Counter

# Symbol of a unit -> its names, in small letters and without a plural's s.
_NAMES = {
    "m": "metre meter",
    "km": "kilometre kilometer",
    "cm": "centimetre centimeter",
    "mm": "millimetre millimeter",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "d": "day",
    "g": "gram gramme",
    "kg": "kilogram kilogramme",
    "K": "kelvin degk",
    "degC": "celsius degc",
    "degF": "fahrenheit degf",
    "Pa": "pascal",
    "hPa": "hectopascal",
    "kPa": "kilopascal",
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "mol": "mole",
    "Hz": "hertz",
    "rad": "radian",
    "%": "percent",
}
_SYMBOLS = {name: symbol for symbol, names in _NAMES.items() for name in names.split()}
_NONE = ("", "1", "-", "none", "no unit", "dimensionless", "unitless", "non-dimensional", "nondimensional")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_DEGREES = re.compile(r"(?:°|\bdeg(?:ree)?s?)[ _]*(c|k|f)(?:elsius|elvin|ahrenheit)?(?![a-z])", re.IGNORECASE)
_TOKEN = re.compile(r" *(?:(?P<mark>[/()])|(?P<name>[^\W\d_]+|%|°|\d+(?:\.\d+)?)(?:\^?(?P<power>[-+]?\d{1,3}))?)")


def same_unit(one: str, other: str) -> bool:
    """True if two texts are spellings of one unit."""
    return one == other or _factors(one) == _factors(other)


def has_no_unit(text: str) -> bool:
    """True if a text says that there is no unit."""
    return text.strip().lower() in _NONE


def _factors(text: str) -> object:
    """Power of each symbol; or the text itself in small letters where it is no product of powers."""
    if has_no_unit(text):
        return {}
    plain = re.sub(r"[{}$\\]", "", text.translate(_RAISED)).replace("**", "^")
    plain = _DEGREES.sub(lambda match: f" deg{match[1].upper()} ", plain)
    plain = re.sub(r"\bper\b", "/", re.sub(r"[*·⋅×_]|\.(?!\d)", " ", plain)).strip()
    powers: Counter[str] = Counter()
    # A slash inverts what follows it: one factor, or what stands in brackets.
    signs, inverted, at = [1], False, 0
    while at < len(plain):
        token = _TOKEN.match(plain, at)
        if token is None or (token["mark"] == ")" and len(signs) == 1):
            return " ".join(text.lower().split())
        at, mark = token.end(), token["mark"]
        if mark == "/":
            inverted = True
            continue
        if mark == ")":
            signs.pop()
            continue
        sign, inverted = (-signs[-1] if inverted else signs[-1]), False
        if mark == "(":
            signs.append(sign)
        elif token["name"] != "1":
            powers[_symbol(token["name"])] += sign * int(token["power"] or 1)
    return {name: power for name, power in powers.items() if power}


def _symbol(name: str) -> str:
    small = name.lower()
    return _SYMBOLS.get(small) or _SYMBOLS.get(small.removesuffix("s")) or name
