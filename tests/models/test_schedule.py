"""The mask schedule against known rows and its properties; the flow times by the integrator they drive."""

from itertools import pairwise
from math import cos, exp, floor, pi

import pytest

from enma_fast.errors import EnmaError
from enma_fast.models.schedule import flow_times, mask_schedule

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


@st.composite
def sizes(draw):
    num_tokens = draw(st.integers(1, 400))
    return num_tokens, draw(st.integers(1, num_tokens))


@pytest.mark.parametrize(
    ("num_tokens", "mask_steps", "counts"),
    [
        (16, 6, (2, 2, 4, 4, 3, 1)),
        # Unclamped the last two are 2, 0.
        (64, 16, (1, 2, 3, 4, 5, 5, 6, 6, 7, 6, 5, 5, 4, 3, 1, 1)),
        (16, 16, (1,) * 16),
        (16, 1, (16,)),
        (1, 1, (1,)),
        (4, 3, (1, 2, 1)),
        (17, 2, (9, 8)),
    ],
)
def test_known_schedules(num_tokens, mask_steps, counts):
    assert mask_schedule(num_tokens, mask_steps) == counts


@hypothesis.given(sizes())
def test_every_step_decides_and_all_are_decided(size):
    num_tokens, mask_steps = size
    counts = mask_schedule(num_tokens, mask_steps)
    assert len(counts) == mask_steps
    assert sum(counts) == num_tokens
    assert min(counts) >= 1
    assert counts == mask_schedule(num_tokens, mask_steps)


@hypothesis.given(sizes())
def test_follows_the_cosine_wherever_no_clamp_is_needed(size):
    num_tokens, mask_steps = size
    masked = [floor(num_tokens * cos(pi * s / (2 * mask_steps)) ** 2 + 1e-9) for s in range(mask_steps + 1)]
    free = [before - after for before, after in pairwise(masked)]
    if min(free) >= 1:
        assert mask_schedule(num_tokens, mask_steps) == tuple(free)


@pytest.mark.parametrize(
    ("mask_steps", "step", "quarters"),
    [(6, 2, 3), (6, 3, 2), (6, 4, 1), (26, 13, 2), (39, 13, 3), (39, 26, 1)],
)
def test_no_token_is_lost_to_rounding(mask_steps, step, quarters):
    # At 30, 45 and 60 degrees exactly 3, 2 and 1 quarters stay masked; for 26 and 39 steps cos^2 falls short.
    for num_tokens in range(4 * mask_steps, 4000, 4):
        masked = num_tokens - sum(mask_schedule(num_tokens, mask_steps)[:step])
        assert masked == num_tokens * quarters // 4


def test_more_steps_than_tokens_names_both():
    with pytest.raises(EnmaError, match=r"mask_steps is 17 .* num_tokens 16"):
        mask_schedule(16, 17)


@pytest.mark.parametrize(("num_tokens", "mask_steps"), [(0, 1), (4, 0), (-3, 2), (4, -1)])
def test_sizes_below_one_are_refused(num_tokens, mask_steps):
    with pytest.raises(EnmaError, match="at least 1"):
        mask_schedule(num_tokens, mask_steps)


def integrate(velocity, y, flow_steps):
    times = flow_times(flow_steps)
    for (r, h), (r_mid, h_full) in zip(times[::2], times[1::2], strict=True):
        y = y + h_full * velocity(y + h * velocity(y, r), r_mid)
    return y


def test_flow_times_values():
    assert flow_times(2) == [(0.0, 0.25), (0.25, 0.5), (0.5, 0.25), (0.75, 0.5)]
    assert len(flow_times(10)) == 20


@pytest.mark.parametrize("flow_steps", [1, 7, 33])
def test_it_is_exact_for_a_velocity_linear_in_time(flow_steps):
    assert integrate(lambda y, r: 3.0 + 2.0 * r, 0.5, flow_steps) == pytest.approx(4.5, rel=1e-14)


def test_order_of_convergence():
    # y' = y cos(r), y(0) = 1, so y(1) = exp(sin 1).
    exact = exp(cos(pi / 2 - 1))
    errors = [abs(integrate(lambda y, r: y * cos(r), 1.0, n) - exact) for n in (64, 128)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_no_flow_steps_are_refused():
    with pytest.raises(EnmaError, match="flow_steps"):
        flow_times(0)
