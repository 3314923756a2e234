"""Spellings of one unit are equal, other units are not."""

import pytest

from enma_fast.utils.units import same_unit

SPELLINGS = [
    ("m s-1", "m/s", "m s^-1", "m s**-1", "m·s⁻¹", "m.s-1", "metres per second", "m s^{-1}", "m*s^-1"),
    ("K", "kelvin", "Kelvin", "degK"),
    ("degC", "°C", "celsius", "degrees Celsius", "degree_Celsius", "deg C"),
    ("W m-2 K-1", "W/(m2 K)", "W/m2/K"),
    ("s-1", "1/s", "Hz^1 s-1 / Hz"),
    ("m s-2", "m/s/s", "m/s^2"),
    ("", "1", "-", "dimensionless", "m/m"),
    ("m",),
    ("M",),
    ("hPa", "hectopascal"),
    ("Pa", "pascals"),
    ("km/h",),
    ("W/m2 K",),
    ("whatever [it] is", "Whatever  [it] is"),
    ("9" * 5000,),
]


@pytest.mark.parametrize("one", range(len(SPELLINGS)))
def test_spellings(one: int) -> None:
    for other, spellings in enumerate(SPELLINGS):
        for text in SPELLINGS[one]:
            assert all(same_unit(text, spelling) == (one == other) for spelling in spellings)
