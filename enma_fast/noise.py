"""Counter-based noise: every normal is a pure function of (seed, member, frame, mask step, token, channel).

So member k has the same noise alone, in any chunk, on any rank and after a resume. Nothing here reads a value
back from the device or depends on one, so all of it can be captured in a CUDA graph; seed, frame and mask
step may then be int64 tensors that are overwritten between replays.

Layout, to be reproduced bit for bit by every other implementation (words are uint32, held in int64 here)::

    generator   Philox-4x32, 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
    key         k0 = seed mod 2^32        k1 = member
    counter     c0 = element block        c1 = token     c2 = mask step     c3 = frame
    uniform     u(w) = ((w >> 9) + 1/2) * 2^-23: exact in float32, and strictly inside (0, 1)
    normals     of the four output words w0..w3 of element block e, for channels 4e .. 4e + 3:
                    rho = sqrt(-2 ln u(w0)), phi = 6.283185307179586 * u(w1): rho cos phi, rho sin phi
                    rho = sqrt(-2 ln u(w2)), phi = 6.283185307179586 * u(w3): rho cos phi, rho sin phi

    reserved mask steps
    0xFFFFFFFF  token order:      key (seed, member), counter (0, token, 0xFFFFFFFF, frame), word w0
    0xFFFFFFFE  trajectory seed:  key (seed, 0), counter (index mod 2^32, index >> 32, 0xFFFFFFFE, 0), word w0

The normals are evaluated in float64 and rounded once to float32. In float32 itself, log, cos, sin and even
sqrt are off by a last bit in 5 to 20 % of the values, differently in each math library; rounded from float64,
about one normal in 10^8 can still differ.

Shape suffixes: B members, M tokens decided in this mask step, N tokens per frame, C channels, E blocks.
"""

from __future__ import annotations

from math import tau

import torch
from torch import Tensor

from .errors import EnmaError

Word = int | Tensor

_MASK32 = 0xFFFFFFFF
_ROUNDS = 10
# The multipliers less 2^32: their products with a uint32 fit an int64, so no overflow is ever relied upon.
_M0 = 0xD2511F53 - 2**32
_M1 = 0xCD9E8D57 - 2**32
_W0 = 0x9E3779B9
_W1 = 0xBB67AE85

ORDER_STEP = 0xFFFFFFFF
TRAJECTORY_STEP = 0xFFFFFFFE


def philox_4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Philox-4x32-10 random words.

    Parameters
    ----------
    counter : Tensor
        `[..., 4]` int64, each holding a uint32.
    key : Tensor
        `[..., 2]` int64, each holding a uint32; its leading dimensions broadcast with the counter's.

    Returns
    -------
    Tensor
        `[..., 4]` int64, each holding a uint32.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    return _stack(_philox(c0, c1, c2, c3, k0, k1))


def philox_uniform(bits: Tensor) -> Tensor:
    """Uniform float32 in the open interval (0, 1): `((bits >> 9) + 0.5) * 2^-23`, without any rounding.

    One bit more would not do: `(bits >> 8) + 0.5` needs 25 significant bits, and the largest rounds up to 1.

    Parameters
    ----------
    bits : Tensor
        int64 of any shape, each holding a uint32.

    Returns
    -------
    Tensor
        float32 of the same shape.
    """
    return ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23


def token_noise(
    *,
    seed: Word,
    members: Tensor,
    frame: Word,
    mask_step: Word,
    tokens: Tensor,
    channels: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise for the tokens that one mask step decides.

    Parameters
    ----------
    seed, frame, mask_step : int or Tensor
        An int, a 0-d int64 tensor or one value per member `[B]`; taken modulo 2^32. `frame` is the latent
        frame's index in the trajectory; `mask_step` is below `0xFFFFFFFE`.
    members : Tensor
        `[B]` int64, member numbers in `0 .. 2^32 - 1`.
    tokens : Tensor
        `[M]` or `[B, M]` int64, token indices in the frame.
    channels : int
        Token channels `C`.
    dtype : torch.dtype
        Type of the result; the float32 values are cast, so every type sees the same noise.

    Returns
    -------
    Tensor
        `[B, M, C]` on the device of `members`.
    """
    blocks_E = torch.arange((channels + 3) // 4, device=members.device)
    words = _philox(
        blocks_E,
        tokens.to(torch.int64).unsqueeze(-1),
        _word(mask_step, ndim=3),
        _word(frame, ndim=3),
        _word(seed, ndim=3),
        _word(members, ndim=3),
    )
    uniform = philox_uniform(_stack(words)).to(torch.float64).unflatten(-1, (2, 2))
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0]))
    angle = tau * uniform[..., 1]
    normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return normals.flatten(-3)[..., :channels].to(torch.float32).to(dtype)


def token_order(*, seed: Word, members: Tensor, frame: Word, num_tokens: int) -> Tensor:
    """Random order in which each member decides the tokens of one frame.

    The tokens are sorted by one random word each; equal words stay in the order of their index.

    Parameters
    ----------
    seed, frame : int or Tensor
        As in `token_noise`.
    members : Tensor
        `[B]` int64, member numbers.
    num_tokens : int
        Tokens per frame `N`.

    Returns
    -------
    Tensor
        `[B, N]` int64, in each row a permutation of `0 .. N - 1`: the token to decide first, second, ...
    """
    tokens_N = torch.arange(num_tokens, device=members.device)
    words = _philox(0, tokens_N, ORDER_STEP, _word(frame, ndim=2), _word(seed, ndim=2), _word(members, ndim=2))
    return torch.argsort(torch.as_tensor(words[0]), dim=-1, stable=True)


def trajectory_seed(seed: int, index: int) -> int:
    """Seed of trajectory number `index` of a file, so that each trajectory has independent noise.

    Parameters
    ----------
    seed : int
        Seed of the whole run; taken modulo 2^32.
    index : int
        Number of the trajectory, `0 .. 2^64 - 1`.

    Returns
    -------
    int
        A seed in `0 .. 2^32 - 1`, for index 0 too a new one. Of `n` trajectories, some two share a seed with
        probability about `n^2 / 2^33`.

    Raises
    ------
    EnmaError
        If the index is negative or does not fit 64 bits.
    """
    if not 0 <= index < 2**64:
        raise EnmaError(f"trajectory index is {index}: it must be between 0 and 2^64 - 1")
    return int(_philox(index & _MASK32, index >> 32, TRAJECTORY_STEP, 0, seed & _MASK32, 0)[0])


def _philox(c0: Word, c1: Word, c2: Word, c3: Word, k0: Word, k1: Word) -> tuple[Word, Word, Word, Word]:
    """Ten Philox rounds on words that broadcast against each other; plain ints stay plain ints."""
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        # The true product is p + 2^32 c: its low word is p's, its high word is p's plus c.
        high0, high1 = ((p0 >> 32) + c0) & _MASK32, ((p1 >> 32) + c2) & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK32, high0 ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + _W0) & _MASK32, (k1 + _W1) & _MASK32
    return c0, c1, c2, c3


def _stack(words: tuple[Word, ...]) -> Tensor:
    return torch.stack([torch.as_tensor(word) for word in words], dim=-1)


def _word(value: Word, *, ndim: int) -> Word:
    """The low 32 bits; a value per member `[B]` becomes `[B, 1, ...]` with `ndim` dimensions."""
    if isinstance(value, Tensor):
        value = value.to(torch.int64)
        if value.ndim:
            value = value.reshape(-1, *(1,) * (ndim - 1))
    return value & _MASK32
