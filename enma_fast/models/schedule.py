"""Mask steps and flow steps of a frame: how many tokens each mask step decides, and at which times the flow is read.

Everything here is plain Python on the host: the sizes are static, so a frame step built from them never
synchronises.
"""

from __future__ import annotations

from math import cos, floor, pi

from ..errors import EnmaError


def mask_schedule(num_tokens: int, mask_steps: int) -> tuple[int, ...]:
    """Number of tokens decided at each mask step of one frame.

    After step `s` of `S`, `floor(n cos^2(pi s / 2S))` of the `n` tokens are still masked; every step decides
    at least one token, and the last step decides all that are left.

    Parameters
    ----------
    num_tokens : int
        Tokens per frame, `n >= 1`.
    mask_steps : int
        Mask steps per frame, `1 <= S <= n`.

    Returns
    -------
    tuple of int
        `S` counts, each at least 1, that sum to `n`; for example `(2, 2, 4, 4, 3, 1)` for `n=16, S=6`.

    Raises
    ------
    EnmaError
        If a number is below 1, or there are more steps than tokens.

    Notes
    -----
    ENMA section 3.1.2 prints the cosine as the number decided, which does not sum to `n`; it is read here as
    the number still masked.
    """
    if num_tokens < 1 or mask_steps < 1:
        raise EnmaError(f"num_tokens is {num_tokens} and mask_steps is {mask_steps}: both must be at least 1")
    if mask_steps > num_tokens:
        raise EnmaError(
            f"mask_steps is {mask_steps} but a frame has num_tokens {num_tokens}: "
            f"each step decides at least one token, so use mask_steps <= {num_tokens}"
        )
    counts = []
    masked = num_tokens
    for step in range(1, mask_steps + 1):
        # cos^2 can be exactly 1/4, 1/2 or 3/4; the slack keeps rounding from losing a token there.
        wanted = floor(num_tokens * cos(pi * step / (2 * mask_steps)) ** 2 + 1e-9)
        # Leave one token for each later step, and decide one in this step.
        left = min(max(wanted, mask_steps - step), masked - 1)
        counts.append(masked - left)
        masked = left
    return tuple(counts)


def flow_times(flow_steps: int) -> list[tuple[float, float]]:
    """Velocity evaluations `(r, h)` that carry a token from noise (`r = 0`) to data (`r = 1`) by the midpoint rule.

    Each entry says: evaluate the velocity at flow time `r`, and move by `h` from where the flow step started. A flow
    step has two, a trial half step and the full step: `y_mid = y + h_0 v(y, r_0)`, then `y <- y + h_1 v(y_mid, r_1)`,
    with `r_1 = r_0 + h_0` and `h_1 = 2 h_0`. The paper's 10 flow steps are 20 velocity evaluations. `EnmaError` if
    `flow_steps` is below 1.
    """
    if flow_steps < 1:
        raise EnmaError(f"flow_steps is {flow_steps}: it must be at least 1")
    return [
        time
        for step in range(flow_steps)
        for time in ((step / flow_steps, 0.5 / flow_steps), ((step + 0.5) / flow_steps, 1 / flow_steps))
    ]
