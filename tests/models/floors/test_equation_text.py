"""The equation that a floor found, as a card has it."""

from enma_fast.models.floors.equation_search import EquationFloor
from enma_fast.models.floors.equation_text import equation_text
from enma_fast.models.floors.terms import WAVE


def floor_of(grid, channels, **coefficients):
    """A floor with coefficients of terms by their names, in units of a grid point and a frame, and a spread of one."""
    floor = EquationFloor(grid, channels)
    floor.active.zero_()
    floor.covariance.zero_()
    for name, (mean, off) in coefficients.items():
        j = floor.terms.names.index((int(name[0]), name[2:]))
        floor.active[j], floor.unit[j] = True, 0.5 + j
        floor.mean[j], floor.covariance[j, j] = mean * floor.unit[j], (off * floor.unit[j]) ** 2
    return floor


def test_coefficients_are_in_units_of_the_data():
    """u_t = 0.3 u_xx - 2 u_xxx - u u_x + 0.7 of fields that were divided by 4, on points that are 0.1 apart."""
    dx, dt, scale = 0.1, 0.02, 4.0
    length = dx / WAVE
    floor = floor_of(
        (16,),
        1,
        **{
            "0 lap u0": (0.3 * dt / length**2, 0.06 * dt / length**2),
            "0 d0 lap u0": (-2.0 * dt / length**3, 0.0),
            "0 u0 d0 u0": (-1.0 * dt * scale / length, 0.001 * dt * scale / length),
            "0 1": (0.7 * dt / scale, 0.0),
        },
    )
    (said,) = equation_text(floor, ["T"], scales=[scale], spacings=[dx], interval=dt)
    assert said == "T_t = 0.3±0.06 lap T - 2 lap T_x + 0.7 - 1 T T_x"
    twice = equation_text(floor, ["T"], scales=[scale], spacings=[dx], interval=2 * dt)
    assert "0.15±0.03 lap T" in twice[0]
    floor.forced.fill_(True)
    assert equation_text(floor, ["T"], scales=[scale], spacings=[dx], interval=dt) == [f"{said} + s"]


def test_flows_and_several_channels():
    dx, scales = 0.5, [2.0, 3.0]
    flow = "p1 u0 d0 u1 - p0 u0 d1 u1"
    floor = floor_of((8, 8), 2, **{f"1 {flow}": (-2.0, 0.0), "0 u0 u1 u1": (-18.0, 0.0), "0 lap lap u0": (1.0, 0.0)})
    first, second = equation_text(floor, ["a", "b"], scales=scales, spacings=[dx, dx], interval=1.0)
    # psi is that of the first channel, whose unit it has.
    assert second == "b_t = - 1 (psi_y b_x - psi_x b_y)"
    assert "- 2 a b b" in first
    assert f"{(dx / WAVE) ** 4:.3g} lap lap a" in first
    floor.forced.fill_(True)
    assert equation_text(floor, ["a", "b"], scales=scales, spacings=[dx, dx], interval=1.0)[1] == f"{second} + s_b"


def test_unequal_axes_have_no_text():
    assert equation_text(floor_of((8, 8), 1), ["u"], scales=[1.0], spacings=[0.1, 0.2], interval=1.0) == []
