"""The linear propagator between walls: it is right for diffusion and waves, finds the walls, and is bounded."""

import pytest
import torch

from enma_fast.models.floors.ladder import roll
from enma_fast.models.floors.second_difference import WALLS, applied, difference, matrix, polynomials
from enma_fast.models.floors.stencil import StencilFloor
from enma_fast.models.grid_layers import Edge

P, W = Edge.PERIODIC, Edge.WALL


def operator(grid, edges, kind):
    """A as a dense matrix of the flattened grid."""
    shares = torch.tensor([WALLS[kind]] * 2, dtype=torch.float64)
    total = torch.zeros(1, 1, dtype=torch.float64)
    for n, edge in zip(grid, edges, strict=True):
        own = matrix(n, edge, shares)
        total = torch.kron(total, torch.eye(n, dtype=torch.float64)) + torch.kron(
            torch.eye(len(total), dtype=torch.float64), own
        )
    return total


def smooth(grid, count, generator):
    u = torch.randn(count, *grid, generator=generator, dtype=torch.float64)
    heat = torch.linalg.matrix_exp(2.0 * operator(grid, [W] * len(grid), "even"))
    return (u.flatten(1) @ heat.T).view(u.shape)


def diffusion(grid, edges, count, frames, *, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, A = smooth(grid, count, generator), operator(grid, edges, kind)
    rates = 0.2 + torch.rand(count, generator=generator, dtype=torch.float64)
    steps = torch.linalg.matrix_exp(rates[:, None, None] * A)
    made = [first.flatten(1)[..., None]]
    for _ in range(frames - 1):
        made.append(steps @ made[-1])
    return torch.stack(made, 1)[..., 0].unflatten(2, grid)[..., None].float()


def waves(grid, edges, count, frames, *, kind, seed=0):
    """Damped waves from rest, u_tt + d u_t - c^2 A u = 0."""
    generator = torch.Generator().manual_seed(seed)
    first, A = smooth(grid, count, generator).flatten(1), operator(grid, edges, kind)
    n = len(A)
    squares = 1 + 3 * torch.rand(count, generator=generator, dtype=torch.float64)
    damping = 0.1 * torch.rand(count, generator=generator, dtype=torch.float64)
    one, zero = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    made = []
    for u, square, d in zip(first, squares, damping, strict=True):
        step = torch.linalg.matrix_exp(torch.cat([torch.cat([zero, one], 1), torch.cat([square * A, -d * one], 1)]))
        state, row = torch.cat([u, torch.zeros_like(u)]), [u]
        for _ in range(frames - 1):
            state = step @ state
            row.append(state[:n])
        made.append(torch.stack(row))
    return torch.stack(made).unflatten(2, grid)[..., None].float()


def error(made, truth):
    return float(((made - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean())


@pytest.mark.parametrize("kind", sorted(WALLS))
@pytest.mark.parametrize(("grid", "edges"), [((17,), [W]), ((8, 11), [P, W]), ((5, 6, 7), [W, P, W])])
def test_functions_of_the_difference_are_those_of_its_matrix(kind, grid, edges):
    A = operator(grid, edges, kind)
    size = 16 / 3 * len(grid)
    shares = torch.tensor([WALLS[kind]] * 2, dtype=torch.float64)
    matrices = [matrix(n, edge, shares) * 2 / size for n, edge in zip(grid, edges, strict=True)]
    u = torch.randn(3, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(difference(matrices, u).flatten(1), u.flatten(1) @ A.T * 2 / size)
    node = torch.pi * (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    values = (0.7 * size * (node.cos() - 1) / 2).exp()
    terms = (values[:, None] * torch.cos(node[:, None] * torch.arange(40))).sum(0) * (2 / 40)
    terms[0] /= 2
    expected = u.flatten(1) @ torch.linalg.matrix_exp(0.7 * A).T
    torch.testing.assert_close(applied(matrices, u, terms.expand(3, -1)).flatten(1), expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close((polynomials(matrices, u, 40) * terms[:, None]).sum(1), expected, rtol=1e-8, atol=1e-9)
    assert float(torch.linalg.eigvals(A).real.max()) < 1e-9


@pytest.mark.parametrize(("grid", "edges", "kind"), [((24,), [W], "even"), ((10, 12), [P, W], "odd")])
def test_diffusion_is_forecast_from_two_frames(grid, edges, kind):
    floor = StencilFloor(grid, edges, 1, order=1)
    floor.learn(diffusion(grid, edges, 40, 5, kind=kind))
    u = diffusion(grid, edges, 10, 8, kind=kind, seed=1)
    assert error(roll(floor, u[:, 1:2], floor.infer(u[:, None, :2]), 6), u[:, 2:]) < 2e-3


@pytest.mark.parametrize("kind", sorted(WALLS))
def test_waves_are_forecast_from_three_frames_and_from_one_at_rest(kind):
    grid, edges = (24,), [W]
    floor = StencilFloor(grid, edges, 1)
    floor.learn(waves(grid, edges, 40, 8, kind=kind))
    torch.testing.assert_close(floor.walls[0], torch.tensor([WALLS[kind]] * 2, dtype=torch.float64), atol=0.05, rtol=0)
    u = waves(grid, edges, 10, 20, kind=kind, seed=1)
    state = floor.infer(u[:, None, :3])
    assert error(roll(floor, u[:, 1:3], state, 17), u[:, 3:]) < 1e-2
    assert bool(floor.rests)
    past = torch.stack([floor.before(u[:, 0], state), u[:, 0]], 1)
    assert error(roll(floor, past, state, 19), u[:, 1:]) < 1e-2


def test_what_is_learned_depends_on_the_trajectories_alone():
    grid, edges = (24,), [W]
    fields, found = waves(grid, edges, 40, 8, kind="even"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        floor = StencilFloor(grid, edges, 1)
        floor.learn(fields)
        found.append(floor.state_dict())
    for name, values in found[0].items():
        assert torch.equal(values, found[1][name]), name


def test_walls_between_the_kinds_are_found():
    """A wall that lets half of the difference through is none of the three kinds."""
    grid, edges = (20,), [W]
    floor = StencilFloor(grid, edges, 1, order=1)
    shares = torch.tensor([[0.4, 0.3]] * 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(30, 20, dtype=torch.float64, generator=generator)
    rates = 0.2 + torch.rand(30, generator=generator, dtype=torch.float64)
    steps = torch.linalg.matrix_exp(rates[:, None, None] * matrix(20, W, shares))
    u = [first[..., None]]
    for _ in range(4):
        u.append(steps @ u[-1])
    floor.learn(torch.stack(u, 1))
    torch.testing.assert_close(floor.walls[0], shares, atol=0.05, rtol=0)


def test_nothing_grows_whatever_the_frames_show():
    grid, edges = (12, 10), [W, P]
    floor = StencilFloor(grid, edges, 1)
    floor.learn(waves(grid, edges, 20, 6, kind="odd"))
    u = torch.randn(10, 3, *grid, 1, generator=torch.Generator().manual_seed(1))
    made = roll(floor, u, floor.infer(u[:, None]), 300)
    assert torch.isfinite(made).all()
    assert float(made[:, 200:].square().mean()) < 10 * float(u.square().mean())


def test_channels_and_members_have_laws_of_their_own():
    grid, edges = (24,), [W]
    floor = StencilFloor(grid, edges, 2)
    parts = [waves(grid, edges, 40, 8, kind="even", seed=s) for s in (0, 5)]
    floor.learn(torch.cat(parts, -1))
    u = torch.cat([waves(grid, edges, 6, 12, kind="even", seed=s) for s in (1, 6)], -1)
    state = floor.infer(u[:, None, :3])
    made = roll(floor, u[:, :3], state, 9)
    assert error(made, u[:, 3:]) < 1e-2
    torch.testing.assert_close(roll(floor, u[2:3, :3], state[torch.tensor([2])], 9), made[2:3])
    alone = floor.infer(u[2:3, None, :3])
    # Some coefficients hardly matter, and move with the last bits: by a small part of what is uncertain.
    torch.testing.assert_close(alone.law, state.law[2:3], rtol=1e-6, atol=1e-5)
    assert bool(((alone.law - state.law[2:3]).abs() < 0.1 * state.root[2:3].diagonal(dim1=-2, dim2=-1)).all())
    torch.testing.assert_close(roll(floor, u[2:3, :3], alone, 9), made[2:3])
    drawn = roll(floor, u[:, :3], floor.draw(state, torch.randn(6, 10, generator=torch.Generator().manual_seed(0))), 9)
    assert 0 < error(drawn, made) < 1e-2


def test_laws_of_frames_with_errors_are_held_by_those_of_training():
    """Also errors that no law explains; draws then spread as far as such laws are from the truth."""
    grid, edges = (24,), [W]
    floor = StencilFloor(grid, edges, 1)
    floor.learn(waves(grid, edges, 40, 8, kind="even"))
    u = waves(grid, edges, 40, 20, kind="even", seed=1)
    generator = torch.Generator().manual_seed(2)
    seen = u[:, :3] + 0.02 * u.std() * torch.randn(u[:, :3].shape, generator=generator)
    state, truth = floor.infer(seen[:, None]), floor.infer(u[:, None, :3])
    spread = floor.law_covariance[0].diagonal().sqrt()
    off = (state.law - truth.law)[:, 0]
    assert float((off / spread).abs().max()) < 4
    # Damping is known from training alone, the speed from the frames.
    assert float(off[:, 3].square().mean().sqrt()) < 0.2 * float(spread[3])
    drawn = [
        floor.draw(state, torch.randn(len(u), 5, generator=generator)).law[:, 0, 3] - state.law[:, 0, 3]
        for _ in range(20)
    ]
    assert 0.1 < float(torch.stack(drawn).square().mean().sqrt() / off[:, 3].square().mean().sqrt()) < 3
    # Laws that are fitted to these frames alone have an error of 0.7.
    assert error(roll(floor, u[:, 1:3], state, 17), u[:, 3:]) < 0.2


def test_points_without_a_force_that_never_move_stay():
    """An error of the speed would last there, and drive all that is around it."""
    grid, edges = (24,), [W]
    u = waves(grid, edges, 40, 8, kind="still")
    floor = StencilFloor(grid, edges, 1)
    floor.learn(u)
    assert torch.nonzero(floor.still)[:, 0].tolist() == [0, 1, 22, 23]
    seen = u[:4, :3] + 0.1 * torch.randn(4, 3, 24, 1, generator=torch.Generator().manual_seed(1))
    state = floor.infer(seen[:, None])
    made = roll(floor, seen[:, 1:], state, 30)
    assert torch.equal(made[:, :, :2], seen[:, 2:, :2].expand(-1, 30, -1, -1))
    # What the frame before has at such a point says nothing.
    other = seen.clone()
    other[:, 1, :2] += 1
    torch.testing.assert_close(floor.step(other[:, 1:], state), floor.step(seen[:, 1:], state))
    # Where fields are 0 in all that was seen a wave may yet arrive.
    floor.learn(u * (torch.arange(24) < 12)[:, None])
    assert not floor.still[2:22].any()
