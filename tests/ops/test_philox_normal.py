"""Each implementation draws the documented normals: alone or among others, for any strides, types and words."""

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.ops._backend import interpreted, triton_problem
from enma_fast.ops.philox_normal import DTYPES, candidates, philox_normal, philox_normal_ref

from .._extension import needs_native
from ._cubin import CAPABILITIES, SHARED_LIMIT, report
from ._philox import oracle_noise


@pytest.fixture(params=["triton", pytest.param("native", marks=needs_native), "reference"])
def backend(request: pytest.FixtureRequest, device: torch.device) -> str:
    if request.param == "triton" and triton_problem(device) is not None:
        pytest.skip(triton_problem(device))
    return request.param


@pytest.fixture
def place(backend: str, device: torch.device) -> torch.device:
    """Where this implementation computes."""
    return torch.device("cpu") if backend == "native" else device


def inputs(place: torch.device, *, B: int = 3, M: int = 5, channels: int = 4, **changes) -> dict:
    """Arguments with a word of each kind; all reach beyond 2^31."""
    generator = torch.Generator().manual_seed(B * 1000 + M)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2**32, shape, generator=generator).to(place)

    arguments = {"seed": words(B), "members": words(B), "frame": words(), "mask_step": 7, "tokens": words(B, M)}
    return arguments | {"channels": channels} | changes


def assert_same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Float32 results at most one step apart, and hardly ever that."""
    assert ours.dtype == expected.dtype == torch.float32
    assert ours.shape == expected.shape
    apart = (ours.contiguous().view(torch.int32).long() - expected.contiguous().view(torch.int32).long()).abs()
    assert (apart <= 1).all()
    assert (apart > 0).sum() <= 1


def reference(arguments: dict) -> torch.Tensor:
    return philox_normal_ref(**arguments)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 17, 64])
@pytest.mark.parametrize(("B", "M"), [(1, 1), (3, 5), (65, 1), (2, 129)])
def test_values(backend, place, B, M, channels):
    arguments = inputs(place, B=B, M=M, channels=channels)
    normals = philox_normal(**arguments, backend=backend)
    assert normals.shape == (B, M, channels)
    assert_same(normals, reference(arguments))


def test_the_documented_layout(backend, place):
    arguments = inputs(place, B=2, M=3, channels=6)
    normals = philox_normal(**arguments, backend=backend).cpu()
    for b in range(2):
        for m in range(3):
            seed, member, token = (arguments[n].flatten()[k].item() for n, k in
                                   (("seed", b), ("members", b), ("tokens", 3 * b + m)))  # fmt: skip
            expected = oracle_noise(seed, member, arguments["frame"].item(), 7, token, 6)
            assert_same(normals[b, m], torch.tensor(expected))


@pytest.mark.parametrize("empty", [{"B": 0}, {"M": 0}, {"B": 0, "M": 0}], ids=str)
def test_nothing_to_draw(backend, place, empty):
    arguments = inputs(place, **empty)
    normals = philox_normal(**arguments, backend=backend)
    assert normals.shape == (empty.get("B", 3), empty.get("M", 5), 4)


def test_each_normal_alone_is_that_of_the_batch(backend, place):
    arguments = inputs(place, B=4, M=3, channels=5, frame=torch.arange(4, device=place))
    batch = philox_normal(**arguments, backend=backend)
    for b in range(4):
        for m in range(3):
            words = {name: arguments[name][b].item() for name in ("seed", "frame")}
            alone = philox_normal(
                **words,
                members=arguments["members"][b : b + 1],
                mask_step=7,
                tokens=arguments["tokens"][b, m : m + 1],
                channels=5,
                backend=backend,
            )
            assert torch.equal(alone[0, 0], batch[b, m])


def test_any_strides(backend, place):
    arguments = inputs(place, B=4, M=6)
    expected = philox_normal(**arguments, backend=backend)
    strided = {name: torch.stack([arguments[name]] * 3, -1)[..., 1] for name in ("seed", "members")}
    strided["tokens"] = arguments["tokens"].T.contiguous().T
    assert not strided["tokens"].is_contiguous()
    assert torch.equal(philox_normal(**arguments | strided, backend=backend), expected)
    shared = arguments["tokens"][2]
    one_for_all = philox_normal(**arguments | {"tokens": shared}, backend=backend)
    assert torch.equal(one_for_all[2], expected[2])
    expanded = philox_normal(**arguments | {"tokens": shared.expand(4, 6)}, backend=backend)
    assert torch.equal(one_for_all, expanded)


def test_words_of_every_kind(backend, place):
    def draw(**changes):
        return philox_normal(**inputs(place) | changes, backend=backend)

    expected = draw(seed=5, frame=1, mask_step=0xFFFFFFFD)
    assert torch.equal(draw(seed=5 + 2**70, frame=1 - 2**32, mask_step=-3), expected)
    small = {"seed": torch.tensor(5, dtype=torch.uint8), "frame": torch.tensor([1] * 3, dtype=torch.int16)}
    words = small | {"mask_step": torch.tensor(-3, dtype=torch.int32)}
    assert torch.equal(draw(**{name: word.to(place) for name, word in words.items()}), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_sees_the_float32_normals(backend, place, dtype):
    arguments = inputs(place, B=5, M=33, channels=6)
    normals = philox_normal(**arguments, dtype=dtype, backend=backend)
    assert torch.equal(normals, philox_normal(**arguments, backend=backend).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_fills_its_place_alone(backend, place, dtype):
    arguments = inputs(place, channels=3, dtype=dtype)
    # A slice in the middle of a larger buffer, whose other values stay.
    buffer = torch.full((3, 3, 5, 3), 7.0, dtype=dtype, device=place)
    out = buffer[1]
    words = [torch.as_tensor(arguments[name]).to(place) for name in ("seed", "members", "frame", "mask_step", "tokens")]
    torch.ops.enma_fast.philox_normal_(*words, out, backend)
    assert torch.equal(out, philox_normal(**arguments, backend=backend))
    assert (buffer[0] == 7).all()
    assert (buffer[2] == 7).all()


def test_repeated_runs_are_the_same(backend, place):
    arguments = inputs(place, B=17, M=31, channels=9)
    assert torch.equal(philox_normal(**arguments, backend=backend), philox_normal(**arguments, backend=backend))


def test_many_normals_are_drawn_in_threads(backend, place):
    arguments = inputs(place, B=33, M=64, channels=13)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = philox_normal(**arguments, backend=backend)
        torch.set_num_threads(1)
        assert torch.equal(philox_normal(**arguments, backend=backend), two)
    finally:
        torch.set_num_threads(threads)
    assert_same(two, reference(arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(backend, place, dtype):
    arguments = inputs(place)
    words = [torch.as_tensor(arguments[name]).to(place) for name in ("seed", "members", "frame", "mask_step", "tokens")]
    out = torch.empty(3, 5, 4, dtype=dtype, device=place)
    torch.library.opcheck(torch.ops.enma_fast.philox_normal_.default, (*words, out, backend))


def test_it_survives_compilation(backend, place):
    def doubled(seed, members, tokens):
        return 2 * philox_normal(
            seed=seed, members=members, frame=3, mask_step=1, tokens=tokens, channels=6, backend=backend
        )

    arguments = inputs(place)
    given = [arguments[name] for name in ("seed", "members", "tokens")]
    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*given), doubled(*given))


def test_the_default_survives_compilation(device):
    def draw(seed, tokens):
        return philox_normal(seed=seed, members=tokens, frame=3, mask_step=seed, tokens=tokens, channels=3)

    given = torch.tensor(5, device=device), torch.arange(4, device=device)
    assert torch.equal(torch.compile(draw, backend="aot_eager", fullgraph=True)(*given), draw(*given))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("members", torch.zeros(3), "members"),
        ("members", torch.zeros(3, 1, dtype=torch.int64), "members"),
        ("tokens", torch.zeros(2, 5, dtype=torch.int64), "tokens"),
        ("tokens", torch.zeros(5, dtype=torch.bool), "tokens"),
        ("tokens", torch.tensor(5), "tokens"),
        ("seed", torch.zeros(2, dtype=torch.int64), "seed"),
        ("frame", torch.zeros(1, 3, dtype=torch.int64), "frame"),
        ("mask_step", torch.tensor(0.5), "mask_step"),
        ("channels", 0, "channels is 0"),
        ("dtype", torch.int32, "dtype"),
        ("seed", torch.zeros((), dtype=torch.int64, device="meta"), "seed"),
    ],
)
def test_bad_arguments_are_named(backend, name, value, message):
    with pytest.raises(EnmaError, match=f"philox_normal: {message}"):
        philox_normal(**inputs(torch.device("cpu")) | {name: value}, backend=backend)


def test_a_backend_that_cannot_run_says_why(device):
    with pytest.raises(EnmaError, match="backend 'fast'"):
        philox_normal(**inputs(device), backend="fast")
    for name, problem in candidates(torch.device("meta"), torch.float32).items():
        if problem is not None:
            with pytest.raises(EnmaError, match=f"backend '{name}'"):
                philox_normal(**inputs(torch.device("meta")), backend=name)
    assert list(candidates(device, torch.float32))[-1] == "reference"


def test_the_default_is_the_best_that_can_run(device):
    arguments = inputs(device)
    usable = [name for name, problem in candidates(device, torch.float32).items() if problem is None]
    best = next(name for name in usable if not (name == "triton" and interpreted()))
    assert torch.equal(philox_normal(**arguments), philox_normal(**arguments, backend=best))


@pytest.mark.gpu
def test_a_captured_graph_follows_its_words(device):
    arguments = inputs(device, B=7, M=3, channels=6)
    words = {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("seed", "frame", "mask_step")}
    philox_normal(**arguments | words, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = philox_normal(**arguments | words, backend="triton")
    for values in [(1, 2, 3), (2**32 - 1, 2**40 + 9, 0)]:
        for word, value in zip(words.values(), values, strict=True):
            word.fill_(value)
        graph.replay()
        assert_same(out, reference(arguments | dict(zip(words, values, strict=True))))


def cubin_cases() -> None:
    """A small and a large draw in each type that production uses."""
    from enma_fast.kernels.philox_normal import launch_philox_normal

    for dtype in (torch.float32, torch.bfloat16):
        for B, M, C in ((64, 4, 4), (1024, 64, 64)):
            word, members, tokens = torch.tensor(1), torch.arange(B), torch.arange(M)
            out = torch.empty(B, M, C, dtype=dtype)
            launch_philox_normal(word, members, word, word, tokens, out=out)


# One of all tests of cubins that is not slow.
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_cubins_use_no_stack(capability):
    pytest.importorskip("triton")
    kernels = report("tests.ops.test_philox_normal:cubin_cases", capability)
    assert len(kernels) == 4
    for kernel in kernels:
        assert kernel["spills"] == kernel["stack"] == 0
        assert kernel["registers"] <= 64
        assert kernel["shared"] <= SHARED_LIMIT[capability]
