"""Power 2 as extra channels: exact in fp32, and in bf16 only with centred coordinates in two halves."""

import pytest
import torch

from enma_fast.ops._point_attention_folded import fold
from enma_fast.ops.point_attention import point_attention_ref

from ._oracle import assert_close_as_reference
from .test_point_attention import assert_as_reference, call, case


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("per_row", [False, True])
def test_values_and_gradients(dims, per_row):
    arguments = case(2, 3, 17, 33, 5, 7, dims, 2, (None,) * dims, per_row, per_row)
    assert_as_reference(*arguments, "folded", torch.device("cpu"))


def test_bfloat16_values():
    tensors, options = case(2, 2, 33, 129, 16, 16, 2, 2, (None, None), False, True, dtype=torch.bfloat16)
    tensors[5] = torch.tensor([37.3, 256.0])
    same = point_attention_ref(*tensors[:3], query_points=tensors[3], points=tensors[4], slopes=tensors[5], **options)
    wide = [x.double() for x in tensors]
    exact = point_attention_ref(*wide[:3], query_points=wide[3], points=wide[4], slopes=wide[5], **options)
    out = call(tensors, options, "folded", torch.device("cpu"))
    assert_close_as_reference(out, same, exact, floor=2e-2)


def logit_error(split, size, offset):
    """Largest error of a logit, beside a constant per query, for m = 256 on a square of this size at `offset`."""
    x, y = (torch.rand(n, 2) * size + offset for n in (40, 50))
    q = torch.randn(1, 1, 40, 16).bfloat16()
    k = torch.randn(1, 1, 50, 16).bfloat16()
    q_more, k_more = fold(
        q, k, query_points=x, points=y, slopes=torch.tensor([256.0]), valid=None, split=split
    )  # fmt: skip
    assert q_more.dtype == torch.bfloat16
    assert q_more.shape[-1] == 16 + (8 if split else 3)
    found = q_more.double() @ k_more.double().transpose(-1, -2) / 4
    apart = x.double()[:, None] - y.double()[None]
    exact = q.double() @ k.double().transpose(-1, -2) / 4 - 256 * apart.square().sum(-1)
    error = found - exact
    return (error - error.mean(-1, keepdim=True)).abs().max().item()


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_bfloat16_needs_both_halves(offset):
    assert logit_error(split=False, size=1.0, offset=offset) > 0.3
    assert logit_error(split=True, size=1.0, offset=offset) < 0.005
    # Logits of 5,000.
    assert logit_error(split=False, size=4.0, offset=offset) > 4
    assert logit_error(split=True, size=4.0, offset=offset) < 0.1
