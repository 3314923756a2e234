"""Symmetries that data show: along an axis, and in a mirror with signs of channels."""

import torch

from enma_fast.models.grid_layers import Edge
from enma_fast.training.measured_symmetries import mirrors, shift_axes

P, W = Edge.PERIODIC, Edge.WALL


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(u, axes):
    for axis in axes:
        u = (u.roll(1, axis) + 2 * u + u.roll(-1, axis)) / 4
    return u


def stepped(first, step, frames=6):
    made = [first]
    for _ in range(frames - 1):
        made.append(made[-1] + step(made[-1]))
    return torch.stack(made, 1)


def test_a_map_that_stays_forbids_shifts_along_its_axis():
    u = normals(60, 5, 12, 10, 1)
    assert shift_axes(u, [P, P]) == [0, 1]
    assert shift_axes(u, [P, W]) == [0]
    geography = torch.sin(torch.arange(12) / 12 * 2 * torch.pi)[:, None, None]
    assert shift_axes(u + 0.5 * geography, [P, P]) == [1]


def test_diffusion_has_mirrors_and_one_sided_motion_has_none():
    first = smooth(normals(20, 16, 12, 1), (1, 2, 1, 2))

    def diffusion(u):
        return 0.1 * (u.roll(1, 1) + u.roll(-1, 1) + u.roll(1, 2) + u.roll(-1, 2) - 4 * u)

    assert mirrors(stepped(first, diffusion), [P, P]) == {0: (1,), 1: (1,)}
    moving = stepped(first, lambda u: diffusion(u) + 0.2 * (u.roll(1, 1) - u))
    assert mirrors(moving, [P, P]) == {1: (1,)}


def test_a_velocity_turns_its_sign():
    """Long waves on a line: height and velocity, of which the mirror turns the second."""
    first = smooth(normals(20, 24, 2), (1, 1, 1))

    def waves(q):
        slope = (q.roll(-1, 1) - q.roll(1, 1)) / 2
        return -0.2 * slope.flip(-1)

    assert mirrors(stepped(first, waves), [P]) == {0: (1, -1)}


def test_what_steepens_forwards_is_mirrored_upside_down():
    first = smooth(normals(20, 24, 1), (1, 1, 1))
    burgers = stepped(first, lambda u: -0.1 * u * (u.roll(-1, 1) - u.roll(1, 1)))
    assert mirrors(burgers, [P]) == {0: (-1,)}
