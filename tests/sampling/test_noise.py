"""Noise against its documented layout and statistics; members keep their noise in any batch.

The generator and the implementations of the normals have tests of their own in tests/ops.
"""

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.ops.frame_rows import ORDER_STEP, order_of
from enma_fast.ops.philox_normal import normals_of_words, philox_normal
from enma_fast.sampling.noise import TRAJECTORY_STEP, trajectory_seed

from ..ops._philox import oracle_noise, philox_4x32, philox_4xw

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
stats = pytest.importorskip("scipy.stats")

UINT32 = st.integers(0, 2**32 - 1)


def noise(*, seed=0, members=(0,), frame=0, mask_step=0, tokens=(0,), channels=4, **kwargs):
    return philox_normal(
        seed=seed,
        members=torch.as_tensor(members),
        frame=frame,
        mask_step=mask_step,
        tokens=torch.as_tensor(tokens),
        channels=channels,
        **kwargs,
    )


@hypothesis.given(st.tuples(UINT32, UINT32, UINT32, UINT32), st.tuples(UINT32, UINT32))
def test_any_counter_and_key_match_the_oracle(counter, key):
    assert philox_4x32(torch.tensor(counter), torch.tensor(key)).tolist() == philox_4xw(counter, key, 32)


@hypothesis.given(UINT32, UINT32, UINT32, st.integers(0, 300), st.integers(0, 2**20), st.integers(1, 9))
def test_layout_is_the_documented_one(seed, member, frame, mask_step, token, channels):
    got = noise(seed=seed, members=[member], frame=frame, mask_step=mask_step, tokens=[token], channels=channels)
    assert got.shape == (1, 1, channels)
    assert got.dtype == torch.float32
    assert got.flatten().tolist() == oracle_noise(seed, member, frame, mask_step, token, channels)


def test_normals_of_extreme_words_are_finite():
    normals = normals_of_words(torch.cartesian_prod(*[torch.tensor([0, 2**32 - 1])] * 4))
    assert normals.isfinite().all()
    # The largest radius is that of the smallest uniform.
    assert normals.abs().max().item() == pytest.approx(np.sqrt(48 * np.log(2)), rel=1e-6)


def test_normals_are_standard_normal():
    normals = noise(seed=3, members=range(256), tokens=range(64), channels=16).flatten().numpy()
    # 2^18 draws; all bounds are about four standard errors.
    assert abs(normals.mean()) < 0.008
    assert abs(normals.var() - 1) < 0.011
    assert abs(stats.skew(normals)) < 0.02
    assert abs(stats.kurtosis(normals)) < 0.04
    assert stats.kstest(normals, "norm").pvalue > 1e-3


def test_channels_are_independent():
    normals = noise(seed=4, members=range(128), tokens=range(128), channels=6).flatten(0, 1).double()
    correlation = torch.corrcoef(normals.T) - torch.eye(6)
    # The two normals of a pair share a radius: their squares would be correlated if it were wrong.
    squares = torch.corrcoef(normals.T.square()) - torch.eye(6)
    assert correlation.abs().max() < 4.5 / np.sqrt(len(normals))
    assert squares.abs().max() < 4.5 / np.sqrt(len(normals))


BASE = {"seed": 11, "members": [5], "frame": 3, "mask_step": 2}


@pytest.mark.parametrize("change", [{"seed": 12}, {"members": [6]}, {"frame": 4}, {"mask_step": 3}], ids=str)
def test_each_key_gives_unrelated_noise(change):
    tokens = torch.arange(20000)
    one = noise(**BASE, tokens=tokens).flatten()
    other = noise(**{**BASE, **change}, tokens=tokens).flatten()
    assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / np.sqrt(one.numel())
    assert (one == other).float().mean() < 1e-3


def test_a_member_alone_equals_the_member_in_a_crowd():
    members = torch.arange(64)
    crowd = noise(seed=9, members=members, frame=2, mask_step=1, tokens=range(16), channels=5)
    for k in (0, 1, 37, 63):
        alone = noise(seed=9, members=[k], frame=2, mask_step=1, tokens=range(16), channels=5)
        assert torch.equal(alone[0], crowd[k])
    shuffled = torch.randperm(64)
    assert torch.equal(
        noise(seed=9, members=shuffled, frame=2, mask_step=1, tokens=range(16), channels=5), crowd[shuffled]
    )


def test_a_subset_of_tokens_equals_the_subset():
    every = noise(members=range(7), tokens=range(33), channels=4)
    order = torch.stack([torch.randperm(33)[:13] for _ in range(7)])
    subset = noise(members=range(7), tokens=order, channels=4)
    assert torch.equal(subset, every.gather(1, order[..., None].expand(-1, -1, 4)))


def test_more_channels_extend_fewer():
    assert torch.equal(noise(channels=3), noise(channels=32)[..., :3])


@pytest.mark.parametrize("shape", [(), (3,)], ids=["0-d", "per member"])
def test_tensors_and_ints_give_the_same_bits(shape):
    words = {"seed": 2**32 - 1, "frame": 7, "mask_step": 5}
    tensors = {name: torch.full(shape, value) for name, value in words.items()}
    assert torch.equal(
        noise(**tensors, members=[1, 2, 9], tokens=range(4)),
        noise(**words, members=[1, 2, 9], tokens=range(4)),
    )
    del words["mask_step"], tensors["mask_step"]
    members = torch.tensor([1, 2, 9])
    assert torch.equal(
        order_of(**tensors, members=members, num_tokens=16),
        order_of(**words, members=members, num_tokens=16),
    )


def test_seeds_and_frames_may_differ_between_the_rows_of_a_batch():
    seeds, frames = torch.tensor([4, 8]), torch.tensor([1, 6])
    both = noise(seed=seeds, frame=frames, members=[3, 3], tokens=range(5))
    for row in range(2):
        one = noise(seed=int(seeds[row]), frame=int(frames[row]), members=[3], tokens=range(5))
        assert torch.equal(both[row], one[0])


def test_words_are_taken_modulo_two_to_the_32():
    assert torch.equal(noise(seed=2**32 + 5), noise(seed=5))
    assert torch.equal(noise(seed=-1), noise(seed=2**32 - 1))
    assert torch.equal(noise(seed=torch.tensor(-1)), noise(seed=2**32 - 1))
    assert torch.equal(noise(frame=torch.tensor(7, dtype=torch.int32)), noise(frame=7))
    assert trajectory_seed(-1, 3) == trajectory_seed(2**64 - 1, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_dtype_sees_the_float32_noise(dtype):
    assert torch.equal(noise(tokens=range(9), dtype=dtype), noise(tokens=range(9)).to(dtype))


def test_no_tokens_and_no_members_give_empty_noise():
    assert noise(tokens=torch.empty(0, dtype=torch.int64)).shape == (1, 0, 4)
    assert noise(members=torch.empty(0, dtype=torch.int64)).shape == (0, 1, 4)


def test_token_order_is_a_permutation_of_its_own_for_each_member_and_frame():
    order = order_of(seed=1, members=torch.arange(50), frame=0, num_tokens=16)
    assert torch.equal(order.sort(dim=1).values, torch.arange(16).expand(50, 16))
    assert len(order.unique(dim=0)) == 50
    assert not torch.equal(order, order_of(seed=1, members=torch.arange(50), frame=1, num_tokens=16))
    alone = order_of(seed=1, members=torch.tensor([31]), frame=0, num_tokens=16)
    assert torch.equal(alone[0], order[31])


@pytest.mark.parametrize(("seed", "member", "frame"), [(0, 0, 0), (7, 2**32 - 1, 4)])
def test_token_order_sorts_the_documented_words(seed, member, frame):
    words = [philox_4xw((0, token, ORDER_STEP, frame), (seed, member), 32)[0] for token in range(17)]
    order = order_of(seed=seed, members=torch.tensor([member]), frame=frame, num_tokens=17)
    assert order[0].tolist() == sorted(range(17), key=lambda token: (words[token], token))


def test_token_order_breaks_ties_by_index(monkeypatch):
    monkeypatch.setattr("enma_fast.ops.frame_rows.philox", lambda *words: (torch.tensor([[7, 3] * 50]),))
    order = order_of(seed=0, members=torch.tensor([0]), frame=0, num_tokens=100)
    assert order[0].tolist() == [*range(1, 100, 2), *range(0, 100, 2)]


def test_token_order_is_uniform():
    order = order_of(seed=2, members=torch.arange(24000), frame=5, num_tokens=4)
    codes = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_trajectory_seeds_are_the_documented_words_and_differ():
    for seed, index in [(0, 0), (3, 1), (2**32 - 1, 2**40 + 9), (2**63 + 5, 2)]:
        words = philox_4xw((index % 2**32, index >> 32, TRAJECTORY_STEP, 0), (seed % 2**32, seed >> 32), 32)
        assert trajectory_seed(seed, index) == words[0]
    # Seeds that are times or hashes have more than 32 bits.
    given = [*range(10), *(2**32 + 2**k for k in range(10))]
    seeds = {trajectory_seed(seed, index) for seed in given for index in range(100)}
    assert len(seeds) == 2000


@pytest.mark.parametrize("index", [-1, 2**64])
def test_trajectory_index_out_of_range_is_refused(index):
    with pytest.raises(EnmaError, match="trajectory index"):
        trajectory_seed(0, index)


def test_nothing_reads_a_value_back():
    # Meta tensors have no values: any .item() or branch on data raises.
    words = {name: torch.empty((), dtype=torch.int64, device="meta") for name in ("seed", "frame")}
    members = torch.empty(3, dtype=torch.int64, device="meta")
    tokens = torch.empty(3, 5, dtype=torch.int64, device="meta")
    normals = philox_normal(**words, members=members, mask_step=words["frame"], tokens=tokens, channels=6)
    assert (normals.device.type, normals.shape) == ("meta", (3, 5, 6))
    assert order_of(**words, members=members, num_tokens=5).device.type == "meta"
