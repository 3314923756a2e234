"""Counter-based normals, from the counter to the stored value in one kernel.

    w0..w3 = Philox-4x32-10(counter (e, token, mask step, frame), key (seed, member))
    u(w)   = ((w >> 9) + 1/2) 2^-23
    normal[4e], normal[4e + 1]     = sqrt(-2 ln u(w0)) (cos, sin)(2 pi u(w1))
    normal[4e + 2], normal[4e + 3] = sqrt(-2 ln u(w2)) (cos, sin)(2 pi u(w3))

evaluated in float64, rounded to float32, then to the type of the result. All words are read from memory, so that a
captured graph follows them.
"""

import math

import triton
import triton.language as tl

INTERPRET = bool(triton.knobs.runtime.interpret)

# (up to this many blocks of four normals, blocks of one program, warps). The usual few thousand are spread as widely as
# they can be, since the float64 functions take long and each unit has few of them.
CONFIGS = ((2**15, 32, 1), (2**62, 128, 4)) if not INTERPRET else ((2**62, 1024, 1),)

MASK32 = tl.constexpr(0xFFFFFFFF)
UNIT = tl.constexpr(2.0**-23)
TAU = tl.constexpr(math.tau)
# pi / 2 in two parts: the first has 33 bits, so that its multiples are exact.
_HEAD = float.fromhex("0x1.921fb544p+0")
HALF_PI_HEAD = tl.constexpr(_HEAD)
HALF_PI_TAIL = tl.constexpr(float.fromhex("0x1.0b4611a626331p-34"))


@triton.jit
def _uniform(word):
    return ((word >> 9).to(tl.float64) + 0.5) * UNIT


@triton.jit
def _cos_sin(word):
    """Cosine and sine of the angle of a word, in float64.

    The library's functions serve any argument, for which they keep a stack. Here the angle is below 2 pi: less a
    multiple of pi / 2 it is within pi / 4, where the Taylor series to the 17th power ends below the last bit.
    """
    angle = _uniform(word) * TAU
    quarter = ((word >> 9) + 0x100000) >> 21
    q = quarter.to(tl.float64)
    x = (angle - q * HALF_PI_HEAD) - q * HALF_PI_TAIL
    y = x * x
    # Written out: the interpreter makes a tensor of a loop's number, and a float32 of its reciprocal.
    s = 1.0 - y * (1.0 / 272)
    s = 1.0 - s * (y * (1.0 / 210))
    s = 1.0 - s * (y * (1.0 / 156))
    s = 1.0 - s * (y * (1.0 / 110))
    s = 1.0 - s * (y * (1.0 / 72))
    s = 1.0 - s * (y * (1.0 / 42))
    s = 1.0 - s * (y * (1.0 / 20))
    s = 1.0 - s * (y * (1.0 / 6))
    c = 1.0 - y * (1.0 / 240)
    c = 1.0 - c * (y * (1.0 / 182))
    c = 1.0 - c * (y * (1.0 / 132))
    c = 1.0 - c * (y * (1.0 / 90))
    c = 1.0 - c * (y * (1.0 / 56))
    c = 1.0 - c * (y * (1.0 / 30))
    c = 1.0 - c * (y * (1.0 / 12))
    c = 1.0 - c * (y * (1.0 / 2))
    s = s * x
    odd = (quarter & 1) == 1
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    return tl.where(((quarter + 1) & 2) == 2, -cosine, cosine), tl.where((quarter & 2) == 2, -sine, sine)


@triton.jit
def _pair(word_radius, word_angle):
    radius = tl.sqrt(-2.0 * tl.log(_uniform(word_radius)))
    cosine, sine = _cos_sin(word_angle)
    return (radius * cosine).to(tl.float32), (radius * sine).to(tl.float32)


@triton.jit
def _store(pointers, values, mask, ROUND: tl.constexpr):
    if ROUND and pointers.dtype.element_ty == tl.bfloat16:
        # The interpreter cuts bfloat16 off where the hardware rounds to the nearest.
        bits = values.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        values = bits.to(tl.float32, bitcast=True)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "M", "s_seed", "s_members", "s_frame", "s_step", "s_tokens_B", "s_tokens_M"])
def _philox_normal(
    p_seed,
    p_members,
    p_frame,
    p_step,
    p_tokens,
    p_out,
    num_rows,
    M,
    s_seed,
    s_members,
    s_frame,
    s_step,
    s_tokens_B,
    s_tokens_M,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUND: tl.constexpr,
):
    """One element block per lane; a row is one token of one member; strides in elements, 0 where a word is shared."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i_row, i_E = i // E, i % E
    m_row = i_row < num_rows
    i_B, i_M = i_row // M, i_row % M
    seed = tl.load(p_seed + i_B * s_seed, mask=m_row, other=0)
    member = tl.load(p_members + i_B * s_members, mask=m_row, other=0)
    frame = tl.load(p_frame + i_B * s_frame, mask=m_row, other=0)
    step = tl.load(p_step + i_B * s_step, mask=m_row, other=0)
    token = tl.load(p_tokens + i_B * s_tokens_B + i_M * s_tokens_M, mask=m_row, other=0)
    # The library's Philox takes the low word of the key in the low half of its seed.
    key = (seed & MASK32) | (member << 32)
    w0, w1, w2, w3 = tl.philox(key, i_E.to(tl.uint32), token.to(tl.uint32), step.to(tl.uint32), frame.to(tl.uint32))
    n0, n1 = _pair(w0, w1)
    n2, n3 = _pair(w2, w3)
    i_C = i_E * 4
    p_block = p_out + i_row * C + i_C
    _store(p_block, n0, m_row, ROUND)
    _store(p_block + 1, n1, m_row & (i_C + 1 < C), ROUND)
    _store(p_block + 2, n2, m_row & (i_C + 2 < C), ROUND)
    _store(p_block + 3, n3, m_row & (i_C + 3 < C), ROUND)


def launch_philox_normal(seed, members, frame, mask_step, tokens, *, out):
    """Fill `out` ``[B, M, C]``, contiguous and not empty.

    All others are int64: `members` ``[B]``, `tokens` ``[M]`` or ``[B, M]``, the words 0-d or ``[B]``, any strides.
    """
    B, M, C = out.shape
    E = triton.cdiv(C, 4)
    strides = [word.stride(0) if word.ndim else 0 for word in (seed, members, frame, mask_step)]
    tokens = tokens.expand(B, M)
    block, num_warps = next(config for limit, *config in CONFIGS if limit >= B * M * E)
    _philox_normal[(triton.cdiv(B * M * E, block),)](
        seed,
        members,
        frame,
        mask_step,
        tokens,
        out,
        B * M,
        M,
        *strides,
        *tokens.stride(),
        C=C,
        E=E,
        BLOCK=block,
        ROUND=INTERPRET,
        num_warps=num_warps,
    )
