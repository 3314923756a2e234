"""The caller's default dtype changes nothing, and arguments out of bounds are one line."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from enma_fast import SamplingConfig, forecast, load_model, stream
from enma_fast.data import example
from enma_fast.errors import EnmaError
from enma_fast.utils.bounds import most_threads


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_forecasts_do_not_depend_on_the_default_dtype(tiny, request):
    history = example()
    options = {"num_members": 2, "num_frames": 3, "seed": 1}
    contexts = {"context": example(trajectory=1, frames=20)}
    before = load_model(tiny)
    expected = [forecast(before, history, **options).numpy(), forecast(before, None, **contexts, **options).numpy()]
    request.getfixturevalue("double")
    after = load_model(tiny)
    assert {p.dtype for p in after.parameters()} == {torch.float32}
    for made in (before, after):
        np.testing.assert_array_equal(forecast(made, history, **options).numpy(), expected[0])
        np.testing.assert_array_equal(forecast(made, None, **contexts, **options).numpy(), expected[1])
        assert next(iter(stream(made, history, **options))).dtype == np.float32
    for backend in ("static", "reference"):
        assert forecast(before, torch.from_numpy(history), backend=backend, **options).values.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float64


def test_times_of_the_flow_do_not_depend_on_the_default_dtype(tiny, request):
    """Those of three steps are not exact in any dtype, where the model's own are 0 and a half."""
    head = load_model(tiny).dynamics.step.velocity
    expected = head.plan(steps=3).time_RW
    request.getfixturevalue("double")
    assert torch.equal(head.plan(steps=3).time_RW, expected)


@pytest.mark.parametrize("change", [{"flow_steps": 10**9}, {"mask_steps": 10**9}, {"temperature": float("nan")}])
def test_settings_out_of_bounds_are_refused_at_once(tiny, change):
    with pytest.raises(EnmaError, match=r"settings: sampling\.\w+ is "):
        forecast(load_model(tiny), example(), settings=SamplingConfig(**change))


def test_more_threads_than_the_machine_has_room_for_are_not_started(tiny, one_thread):
    model, history = load_model(tiny), example()
    options = {"num_members": 2, "num_frames": 3, "seed": 1}
    expected = forecast(model, history, **options).numpy()
    torch.set_num_threads(100_000)
    assert most_threads() < 100_000
    np.testing.assert_array_equal(forecast(model, history, **options).numpy(), expected)


def test_more_frames_than_can_be_counted_are_refused(tiny):
    with pytest.raises(EnmaError, match="num_frames is 1000000; at most 30000 is possible"):
        forecast(load_model(tiny), example(), num_frames=10**6)


def test_the_example_is_a_trajectory_of_the_shipped_file():
    assert example().shape == (3, 128, 1)
    np.testing.assert_array_equal(example(trajectory=7, frames=20)[:3], example(trajectory=7))
    for options, said in (
        ({"frames": 0}, "frames is 0; a trajectory has 20"),
        ({"trajectory": 24}, "select asks for trajectories outside 0..23"),
        ({"dataset": "ocean"}, "ocean-test-in: no such test file"),
    ):
        with pytest.raises(EnmaError, match=said):
            example(**options)


def test_dates_are_refused_with_the_line_that_converts_them(tiny):
    xr = pytest.importorskip("xarray")
    model = load_model(tiny)
    dates = np.datetime64("2026-01-01") + np.arange(3) * np.timedelta64(1, "h")
    history = xr.DataArray(example()[..., 0], dims=("time", "x"), coords={"time": dates.astype("datetime64[ns]")})
    with pytest.raises(EnmaError) as caught:
        forecast(model, history, num_members=1)
    said = str(caught.value)
    assert said.startswith("history: the coordinate time has dtype datetime64[ns]; numbers are expected, 0.05 apart: ")
    line = said.rpartition(": ")[2].replace("numpy", "np")
    forecast(model, eval(line), num_members=1)
