"""Philox and its normals a second and a third time, in Python's and in NumPy's integers."""

from collections.abc import Sequence

import numpy as np
import torch

from enma_fast.ops.philox_normal import philox

# Multipliers and key increments of Philox-4xW.
CONSTANTS = {
    32: (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85),
    64: (0xD2E7470EE14C6C93, 0xCA5A826395121157, 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B),
}

# Counter, key and words of Philox-4x32-10 as published with Random123.
KNOWN_ANSWERS = {
    "zeros": ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


def philox_4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The words `[..., 4]` of PyTorch's Philox by counters `[..., 4]` and keys `[..., 2]`, which broadcast."""
    return torch.stack(philox(*counter.unbind(-1), *key.unbind(-1)), dim=-1)


def philox_4xw(counter: Sequence[int], key: Sequence[int], width: int) -> list[int]:
    """Philox-4xW-10 in Python's unbounded integers."""
    m0, m1, w0, w1 = CONSTANTS[width]
    mask = 2**width - 1
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (p1 >> width) ^ c1 ^ k0, p1 & mask, (p0 >> width) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
    return [c0, c1, c2, c3]


def numpy_words(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox-4x32-10 of counters ``[n, 4]`` and keys ``[n, 2]`` in uint64, where no product overflows."""
    m0, m1, w0, w1 = (np.uint64(c) for c in CONSTANTS[32])
    mask, half = np.uint64(2**32 - 1), np.uint64(32)
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key.astype(np.uint64).T
    for _ in range(10):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & mask, (p0 >> half) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
    return np.stack([c0, c1, c2, c3], axis=-1)


def oracle_noise(seed: int, member: int, frame: int, mask_step: int, token: int, channels: int) -> list[float]:
    """The documented layout, word by word, with NumPy's float64 functions."""
    normals = []
    for block in range(-(-channels // 4)):
        words = philox_4xw((block, token, mask_step, frame), (seed, member), 32)
        uniform = [np.float64(((word >> 9) + 0.5) * 2.0**-23) for word in words]
        for first, second in (uniform[:2], uniform[2:]):
            radius, angle = np.sqrt(-2 * np.log(first)), 6.283185307179586 * second
            normals += [np.float32(radius * np.cos(angle)), np.float32(radius * np.sin(angle))]
    return [float(normal) for normal in normals[:channels]]
