"""Names and units of channels: one check for every file and array that a model is given, contexts too."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data import EQUATIONS
from ..errors import EnmaError
from ..models.model import Model
from ..utils.units import has_no_unit, same_unit

log = logging.getLogger("enma_fast")


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels that are expected, in their order.

    Attributes
    ----------
    of : whose they are, for messages
    names : none where they are not known
    units : one for each channel, "" where it is not known; none where no unit is known
    required : refuse other names; otherwise they are taken in their order, with a warning
    """

    of: str
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    required: bool = False

    @classmethod
    def of_model(cls, model: Model) -> Channels:
        """Those of a model: of its training data as its checkpoint says, or of the equation that made them."""
        config, envelope = model.config, model.envelope
        names, units = ((), ()) if envelope is None else (envelope.channels, envelope.units)
        own = dict(equation.channels) if (equation := EQUATIONS.get(config.dataset)) else {}
        if not units and names in ((), tuple(own)) and len(own) == config.codec.field_channels:
            return cls(of=config.name, names=tuple(own), units=tuple(own.values()))
        # Data of others say "1" where they say nothing.
        return cls(of=config.name, names=names, units=tuple("" if has_no_unit(unit) else unit for unit in units))

    def places(
        self, what: object, names: Sequence[str] | None, units: Sequence[str] | None, *, strict: bool = False
    ) -> list[int] | None:
        """Place of each expected channel among the given ones; None where they are in order, or not named.

        A unit that differs, and names that do, are warned of; with `strict` a unit is refused. `EnmaError` for names
        that differ from those required.
        """
        given = None if names is None else list(names)
        order = None
        if given and self.names and given != list(self.names) and len(given) == len(self.names):
            if sorted(given) == sorted(self.names):
                order = [given.index(name) for name in self.names]
            elif self.required:
                wanted = ", ".join(self.names)
                raise EnmaError(f"{what} has the channels {', '.join(given)}; expected {wanted}, as {self.of} has them")
            else:
                log.warning(
                    "%s: its channels are %s, those of the model %s; they are taken in this order, so check that they "
                    "are the same quantities, or rename them",
                    what,
                    ", ".join(given),
                    ", ".join(self.names),
                )
        for i, (unit, expected) in enumerate(zip(_each(units, order, len(self.units)), self.units, strict=False)):
            # One that is not stated may be any.
            if expected and not has_no_unit(unit) and not same_unit(unit, expected):
                named = given if given and len(given) > i else list(self.names)
                name = named[order[i] if order else i] if named else f"channel {i}"
                report_unit(f"{what}: {name}", unit, expected, of=self.of, strict=strict)
        return order

    def of_context(self, what: object, names: Sequence[str] | None, units: Sequence[str] | None) -> Channels:
        """Those of a context of `what`: its names, and its units where the expected ones are not known."""
        count = max(map(len, (self.names, self.units, names or (), units or ())))
        given = ["" if has_no_unit(unit) else unit for unit in _each(units, None, count)]
        both = (list(each) + [""] * (count - len(each)) for each in (self.units, given))
        joined = replace(self, units=tuple(own or other for own, other in zip(*both, strict=True)))
        if not names:
            return joined
        of = self.of if tuple(names) == self.names else str(what)
        return replace(joined, of=of, names=tuple(names), required=True)


def report_unit(where: str, unit: str, expected: str, *, of: str, strict: bool = False) -> None:
    """Warn that a unit is not the expected one, or refuse it."""
    owner = f"that of {of} is {expected}" if not has_no_unit(expected) else f"{of} has none (1)"
    text = f"{where} has the unit {unit}, {owner}; convert the values, or correct the unit"
    if strict:
        raise EnmaError(f"{text}, or leave out strict")
    log.warning("%s", text)


def _each(units: Sequence[str] | None, order: Sequence[int] | None, count: int) -> list[str]:
    """The unit of each channel in the expected order; one unit may be that of all."""
    if not units:
        return []
    if len(units) == 1:
        return list(units) * count
    return list(units) if order is None else [units[place] for place in order]
