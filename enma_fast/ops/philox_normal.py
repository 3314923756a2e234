"""Counter-based normals: each one is a pure function of (seed, member, frame, mask step, token, channel).

Layout, the same bit for bit in every implementation (words are uint32, held in int64 by the reference)::

    generator   Philox-4x32, 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
    key         k0 = seed mod 2^32        k1 = member
    counter     c0 = element block        c1 = token     c2 = mask step     c3 = frame
    uniform     u(w) = ((w >> 9) + 1/2) * 2^-23: exact in float32, and strictly inside (0, 1)
    normals     of the four output words w0..w3 of element block e, for channels 4e .. 4e + 3:
                    rho = sqrt(-2 ln u(w0)), phi = 6.283185307179586 * u(w1): rho cos phi, rho sin phi
                    rho = sqrt(-2 ln u(w2)), phi = 6.283185307179586 * u(w3): rho cos phi, rho sin phi

The normals are evaluated in float64 and rounded once to float32. In float32 itself, log, cos, sin and even
sqrt are off by a last bit in 5 to 20 % of the values, differently in each math library; rounded from float64,
about one normal in 10^8 can still differ.

Shape suffixes: B members, M tokens decided in this mask step, C channels, E element blocks of four channels.
"""

from __future__ import annotations

from math import tau
from typing import Any

import torch
from torch import Tensor

from ..errors import EnmaError
from ._backend import choose, kernel, native, native_problem, register, triton_problem
from ._checks import dtype_name, expect

OP = "philox_normal"
Word = int | Tensor

MASK32 = 0xFFFFFFFF
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.uint32, torch.int16, torch.int8, torch.uint8)
_ROUNDS = 10
# The multipliers less 2^32: their products with a uint32 fit an int64, so no overflow is ever relied upon.
_M0 = 0xD2511F53 - 2**32
_M1 = 0xCD9E8D57 - 2**32
_W0 = 0x9E3779B9
_W1 = 0xBB67AE85


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    return {"triton": triton_problem(device), "native": native_problem(device), "reference": None}


def philox_normal(
    *,
    seed: Word,
    members: Tensor,
    frame: Word,
    mask_step: Word,
    tokens: Tensor,
    channels: int,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Standard normal noise for the tokens that one mask step decides, by the formula of this module.

    Nothing is read back from the device, so the call can be captured in a CUDA graph: words given as tensors
    may be overwritten between replays, words given as ints are part of the graph.

    Parameters
    ----------
    seed, frame, mask_step : int or Tensor
        An int, a 0-d integer tensor or one value per member `[B]`; taken modulo 2^32.
    members : Tensor
        `[B]` int64, member numbers in `0 .. 2^32 - 1`.
    tokens : Tensor
        `[M]` or `[B, M]` int64, token indices in the frame; any strides.
    channels : int
        Token channels `C`.
    dtype : torch.dtype
        Type of the result; the float32 values are cast, so every type sees the same noise.
    backend : str, optional
        An implementation by name; the best that can run by default.

    Returns
    -------
    Tensor
        `[B, M, C]` on the device of `members`.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    given: dict[str, Any] = {
        "seed": seed,
        "members": members,
        "frame": frame,
        "mask_step": mask_step,
        "tokens": tokens,
        "channels": channels,
        "dtype": dtype,
    }
    _check(**given)
    device = members.device
    # A compiler cannot trace the choice; there it is left to the operator.
    compiling = torch.compiler.is_compiling()
    name = backend or "" if compiling else choose(OP, candidates(device, dtype), backend)
    if name == "reference" and not compiling:
        return philox_normal_ref(**given)
    out = torch.empty(members.shape[0], tokens.shape[-1], channels, dtype=dtype, device=device)
    # An int gets to the device by a fill, without synchronisation.
    words = [
        torch.full((), word & MASK32, dtype=torch.int64, device=device)
        if isinstance(word, int)
        else word.to(torch.int64)
        for word in (seed, frame, mask_step)
    ]
    _fill(words[0], members.to(torch.int64), words[1], words[2], tokens.to(torch.int64), out, name)
    return out


def philox_normal_ref(
    *,
    seed: Word,
    members: Tensor,
    frame: Word,
    mask_step: Word,
    tokens: Tensor,
    channels: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The formula of this module, as written."""
    blocks_E = torch.arange((channels + 3) // 4, device=members.device)
    words = philox(
        blocks_E,
        tokens.to(torch.int64).unsqueeze(-1),
        as_word(mask_step, ndim=3),
        as_word(frame, ndim=3),
        as_word(seed, ndim=3),
        as_word(members, ndim=3),
    )
    stacked = torch.stack([torch.as_tensor(word) for word in words], dim=-1)
    return normals_of_words(stacked).flatten(-2)[..., :channels].to(dtype)


def normals_of_words(words: Tensor) -> Tensor:
    """Four float32 normals `[..., 4]` of four random words `[..., 4]`."""
    uniform = philox_uniform(words).to(torch.float64).unflatten(-1, (2, 2))
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0]))
    angle = tau * uniform[..., 1]
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2).to(torch.float32)


def philox_uniform(bits: Tensor) -> Tensor:
    """Uniform float32 in the open interval (0, 1): `((bits >> 9) + 0.5) * 2^-23`, without any rounding.

    `bits` are int64, each holding a uint32. One bit more would not do: `(bits >> 8) + 0.5` needs 25 significant bits,
    and the largest rounds up to 1.
    """
    return ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23


def philox(c0: Word, c1: Word, c2: Word, c3: Word, k0: Word, k1: Word) -> tuple[Word, Word, Word, Word]:
    """Words of Philox-4x32-10 by counter and key, uint32 held in int64, which broadcast; plain ints stay plain ints."""
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        # The true product is p + 2^32 c: its low word is p's, its high word is p's plus c.
        high0, high1 = ((p0 >> 32) + c0) & MASK32, ((p1 >> 32) + c2) & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & MASK32, high0 ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + _W0) & MASK32, (k1 + _W1) & MASK32
    return c0, c1, c2, c3


def as_word(value: Word, *, ndim: int) -> Word:
    """The low 32 bits; a value per member `[B]` becomes `[B, 1, ...]` with `ndim` dimensions."""
    if isinstance(value, Tensor):
        value = value.to(torch.int64)
        if value.ndim:
            value = value.reshape(-1, *(1,) * (ndim - 1))
    return value & MASK32


def _check(*, members: Tensor, tokens: Tensor, channels: int, dtype: torch.dtype, **words: Word) -> None:
    device = members.device
    expect(OP, "members", members, shape=[None], dtype=_INTEGERS)
    B = members.shape[0]
    expect(OP, "tokens", tokens, shape=[None] if tokens.ndim == 1 else [B, None], dtype=_INTEGERS, device=device)
    for name, word in words.items():
        if isinstance(word, Tensor):
            expect(OP, name, word, shape=[B] if word.ndim else [], dtype=_INTEGERS, device=device)
    if channels < 1:
        raise EnmaError(f"{OP}: channels is {channels}; expected at least 1")
    if dtype not in DTYPES:
        names = ", ".join(map(dtype_name, DTYPES))
        raise EnmaError(f"{OP}: dtype is {dtype}; expected one of {names}")


def _run(
    seed: Tensor, members: Tensor, frame: Tensor, mask_step: Tensor, tokens: Tensor, out: Tensor, backend: str
) -> None:
    if out.numel() == 0:
        return
    name = choose(OP, candidates(out.device, out.dtype), backend or None)
    if name == "reference":
        normals = philox_normal_ref(
            seed=seed, members=members, frame=frame, mask_step=mask_step, tokens=tokens, channels=out.shape[-1]
        )
        out.copy_(normals)
        return
    if name == "triton":
        with torch.cuda.device_of(out):
            kernel(OP).launch_philox_normal(seed, members, frame, mask_step, tokens, out=out)
        return
    values = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    native().philox_normal(seed, members, frame, mask_step, tokens, values, threads=torch.get_num_threads())
    if values is not out:
        out.copy_(values)


def _fake(*arguments: object) -> None:
    """Return nothing: the result is written into `out`."""


_fill = register(
    f"{OP}_(Tensor seed, Tensor members, Tensor frame, Tensor mask_step, Tensor tokens, Tensor(a!) out, str backend)"
    " -> ()",
    _run,
    _fake,
)
