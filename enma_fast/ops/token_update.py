"""Write the tokens that one mask step decided into the frame (paper 3.1.2).

    x[b, tokens[b, m]] = z[b, m],    known[b, tokens[b, m]] = True

Legend: B batch x members, N tokens per frame, M tokens decided in this mask step, C token channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import EnmaError
from ._backend import by_dtype, choose, kernel, register, triton_problem
from ._checks import expect

OP = "update_tokens_"
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    return by_dtype({"triton": triton_problem(device), "reference": None}, dtype, {"triton": TRITON_DTYPES})


def update_tokens_(
    x_BNC: Tensor, known_BN: Tensor, tokens_BM: Tensor, z_BMC: Tensor, *, backend: str | None = None
) -> None:
    """Write tokens into a frame in place, without allocation or synchronisation on a GPU.

    ``x[b, tokens[b, m]] = z[b, m]`` and ``known[b, tokens[b, m]] = True``.

    Parameters
    ----------
    x_BNC
        The frame, changed in place; any strides that do not overlap.
    known_BN
        bool, changed in place.
    tokens_BM
        int64 or int32 places in [0, N), different within a row (which of two equal ones wins is not defined).
        On the CPU a place outside is an error; on a GPU, where asking would synchronise, Triton skips it.
    z_BMC
        Values, dtype of the frame.
    backend
        An implementation by name; the best that can run by default.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    expect(OP, "x_BNC", x_BNC, shape=[None, None, None])
    B, N, C = x_BNC.shape
    device = x_BNC.device
    expect(OP, "known_BN", known_BN, shape=[B, N], dtype=torch.bool, device=device)
    expect(OP, "tokens_BM", tokens_BM, shape=[B, None], dtype=(torch.int64, torch.int32), device=device)
    expect(OP, "z_BMC", z_BMC, shape=[B, tokens_BM.shape[1], C], dtype=x_BNC.dtype, device=device)
    if choose(OP, candidates(device, x_BNC.dtype), backend) == "triton":
        _OPERATOR(x_BNC, known_BN, tokens_BM, z_BMC)
        return
    if not torch.compiler.is_compiling():
        _check_places(tokens_BM, N)
    update_tokens_ref_(x_BNC, known_BN, tokens_BM, z_BMC)


def update_tokens_ref_(x_BNC: Tensor, known_BN: Tensor, tokens_BM: Tensor, z_BMC: Tensor) -> None:
    """The formula of this module, as written."""
    places = tokens_BM.long()
    x_BNC.scatter_(1, places[..., None].expand_as(z_BMC), z_BMC)
    known_BN.scatter_(1, places, True)


def _check_places(tokens_BM: Tensor, num_tokens: int) -> None:
    if tokens_BM.is_cpu and tokens_BM.numel():
        low, high = (int(place) for place in tokens_BM.aminmax())
        if low < 0 or high >= num_tokens:
            raise EnmaError(f"{OP}: tokens_BM has places from {low} to {high}; expected 0 to {num_tokens - 1}")


def _run(x: Tensor, known: Tensor, tokens: Tensor, z: Tensor) -> None:
    _check_places(tokens, x.shape[1])
    with torch.cuda.device_of(x):
        kernel("token_update").launch_update_tokens(x, known, tokens, z)


def _fake(x: Tensor, known: Tensor, tokens: Tensor, z: Tensor) -> None:
    return None


_OPERATOR = register("update_tokens_(Tensor(a!) x, Tensor(b!) known, Tensor tokens, Tensor z) -> ()", _run, _fake)
