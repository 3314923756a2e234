"""A linear propagator between walls, in closed form from the frames that are observed.

Fields obey a law of first or of second order in time, whose coefficients are polynomials of the second difference A:

    u_t = c(A) u                     u_{t+1} = exp(c(A)) u_t
    u_tt + d(A) u_t + s(A) u = 0     u_{t+1} = a(A) u_t - b(A) u_{t-1},    b = exp(-d),
                                     a = 2 exp(-d/2) cos(sqrt(s - d^2/4))

Diffusion is of the first order, waves and vibrations with damping are of the second. Functions of A are sums of
Chebyshev polynomials, so a step is some tens of applications of A. The few coefficients of a trajectory are found by
Gauss-Newton steps from its frames, held by their distribution over the training trajectories (empirical Bayes). What
A does next to a wall is learned from the training trajectories. No equation is used. Nothing grows: s and d are not
below 0, and c is not above. Where they explain far less of the frames than of training data, frames have errors, and
laws are held by their distribution. Points at which A is 0, and which no training trajectory moves, stay as they are.

Legend: B trajectories, W windows, T frames, c channels, N rows (trajectories times channels), J coefficients, L nodes
and polynomials; `*x` space.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grid_layers import Edge
from .ladder import FloorModule, Inferred, widening
from .second_difference import LARGEST, ROWS, WALLS, applied, matrix, polynomials

_TERMS = 48
_STEPS, _TINY = 12, 1e-14
# Most that a field decays in a step, and grows while a law is searched for, as logarithms.
_DECAY, _GROWTH = 40.0, 0.5
# Least variance of a coefficient, and least share of energy that counts as noise.
_LEAST_VARIANCE, _LEAST_NOISE = 1e-8, 1e-12
# Share of energy below which a law counts as right.
_RIGHT = 1e-6
# Share of what is left unexplained that is noise, at least, and of the largest value that a point moves by that does.
_ERRORS, _STILL = 0.03, 1e-6
# Squared speeds, in points a frame, and rates of diffusion, from which laws are fitted where nothing is known.
_SPEEDS = tuple(10 ** (-2 + 4 * i / 31) for i in range(32))
_RATES = tuple(10 ** (-3 + 4 * i / 15) for i in range(16))
# Training windows that laws, and walls, are learned from, Gauss-Newton steps on walls, and differences of shares there.
_FOR_LAWS, _FOR_WALLS, _WALL_STEPS, _DIFFERENCE = 120, 12, 6, 1e-6

Gram = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Laws(Inferred):
    """What was inferred from the windows of trajectories.

    Attributes
    ----------
    law : [B, c, J] coefficients
    root : [B, c, J, J] a root of their posterior covariance
    residual : [B, c] logarithm of the share of the energy of the frames that the law leaves unexplained
    """

    law: Tensor
    root: Tensor
    residual: Tensor


class StencilFloor(FloorModule):
    """The propagator of fields `[*x, c]` on a grid with any edges, 5 points or more along each axis.

    `order` is that of the law in time, and the number of frames that a step reads. Both ends of an axis are alike.
    """

    walls: Tensor
    mean: Tensor
    law_mean: Tensor
    law_covariance: Tensor
    noise: Tensor
    rests: Tensor
    still: Tensor
    _weights: Tensor
    _eigenvalues: Tensor
    _to_terms: Tensor
    moves, local, inferences = True, True, 240

    def __init__(
        self,
        grid: Sequence[int],
        edges: Sequence[Edge],
        channels: int,
        *,
        order: int = 2,
        spacings: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.edges, self.channels, self.order = tuple(grid), tuple(edges), channels, order
        self.reads = order
        spacings = spacings or [1.0] * len(self.grid)
        weights = [(min(spacings) / h) ** 2 for h in spacings]
        self.numbers = 5 if order == 2 else 3
        J = self.numbers
        self.register_buffer("walls", torch.tensor([WALLS["even"]], dtype=torch.float64).repeat(len(grid), ROWS, 1))
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("law_mean", torch.zeros(channels, J, dtype=torch.float64))
        self.register_buffer("law_covariance", torch.eye(J, dtype=torch.float64).repeat(channels, 1, 1))
        self.register_buffer("noise", torch.full((channels,), 1e-6, dtype=torch.float64))
        self.register_buffer("rests", torch.tensor(order == 2))
        # Points without a force that never move, as in the corners of some solvers: the error of a speed would stay.
        self.register_buffer("still", torch.zeros(*grid, channels, dtype=torch.bool))
        # The largest size of an eigenvalue of A, its eigenvalues at Chebyshev's nodes, and the map to coefficients.
        self.size = LARGEST * sum(weights)
        node = math.pi * (torch.arange(_TERMS, dtype=torch.float64) + 0.5) / _TERMS
        to_terms = torch.cos(node[:, None] * torch.arange(_TERMS)) * (2 / _TERMS)
        to_terms[:, 0] /= 2
        self.register_buffer("_weights", torch.tensor(weights, dtype=torch.float64), False)
        self.register_buffer("_eigenvalues", self.size * (node.cos() - 1) / 2, False)
        self.register_buffer("_to_terms", to_terms, False)

    def infer(self, windows: Tensor, *, own: bool = True) -> Laws:
        """What windows `[B, W, T, *x, c]` of `order + 1` frames or more tell, of the own or another trajectory."""
        del own
        B, gram, mean = len(windows), self._gram(windows), self.law_mean.repeat(len(windows), 1)
        noise, known = self.noise.repeat(B), torch.linalg.inv(self.law_covariance).repeat(B, 1, 1)
        law, hessian, share = self._fitted(gram, noise[:, None, None] * known, mean)
        drawn = noise
        if len(rows := torch.nonzero(_ERRORS * share > noise)[:, 0]):
            # All floors draw more where misfits are large, which the noise has counted.
            more, errors = widening((share[rows] / noise[rows]).sqrt()), _ERRORS * share[rows]
            drawn = noise.index_copy(0, rows, torch.maximum(errors / more**2, noise[rows]))
            parts = (gram[0][rows], gram[1][rows], gram[2][rows])
            law[rows], hessian[rows], share[rows] = self._fitted(parts, errors[:, None, None] * known[rows], mean[rows])
        root = torch.linalg.cholesky(drawn[:, None, None] * torch.linalg.inv(hessian))
        shape = (B, self.channels)
        return Laws(law.unflatten(0, shape), root.unflatten(0, shape), share.clamp_min(_TINY).log().unflatten(0, shape))

    def step(self, past: Tensor, laws: Laws) -> Tensor:
        """The frame after `past [B, P, *x, c]`, of which the last `order` are read."""
        a, b, _ = self._symbols(laws.law.flatten(0, 1))
        past = torch.where(self.still, past[:, -1:], past)
        return torch.where(self.still, past[:, -1], self._fields(self._moved(self._rows(past), a, b), past))

    def before(self, first: Tensor, laws: Laws) -> Tensor:
        """The frame before `first [B, *x, c]`: of fields at rest, if the training data begin so, or else the same."""
        if not self.rests:
            return first
        law = laws.law.flatten(0, 1)
        a, b, _ = self._symbols(law)
        assert b is not None
        terms = ((a - self._rest(law)) / b) @ self._to_terms
        rows = self._rows(first[:, None])[:, 0]
        return self._fields(applied(self._matrices(), rows, terms), first)

    @property
    def num_features(self) -> int:
        """Numbers F of :meth:`features`."""
        return self.channels * (self.numbers + 1)

    def features(self, laws: Laws, windows: Tensor) -> Tensor:
        """Numbers `[B, F]` of about unit size for a network: law and residual."""
        del windows
        spread = self.law_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        law = ((laws.law - self.law_mean) / spread).clamp(-4, 4)
        return torch.cat([law, laws.residual[..., None] / 8 + 1], -1).flatten(1).float()

    @property
    def num_draws(self) -> int:
        """Standard normals of a draw."""
        return self.channels * self.numbers

    def draw(self, laws: Laws, normals: Tensor) -> Laws:
        """Coefficients from their posterior, one set for each trajectory, by standard normals `[B, num_draws]`."""
        normals = normals.double().unflatten(1, (self.channels, self.numbers))
        return Laws(laws.law + (laws.root @ normals[..., None])[..., 0], laws.root, laws.residual)

    @torch.no_grad()
    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Find what A does at walls, and the distribution of laws, over training trajectories `[B, T, *x, c]`.

        The same trajectories teach the same, whatever was drawn before.
        """
        count, T = fields.shape[:2]
        generator = torch.Generator().manual_seed(0)
        i = torch.randint(count, (_FOR_LAWS,), generator=generator)
        t = torch.randint(T - self.order, (_FOR_LAWS, 1), generator=generator)
        windows = fields[i[:, None], t + torch.arange(self.order + 1)][:, None]
        self._learn_walls(windows[:_FOR_WALLS], fields.double().mean(tuple(range(fields.ndim - 1))))
        unmoved = (fields.amax(1) - fields.amin(1)).amax(0) <= _STILL * fields.abs().max()
        self.still.copy_(unmoved & self._without_force()[..., None])
        law, share = (x.unflatten(0, (-1, self.channels)) for x in self._free(windows))
        for c in range(self.channels):
            self.law_mean[c], self.law_covariance[c] = _typical(law[:, c], share[:, c])
            self.noise[c] = share[:, c].median().clamp_min(_LEAST_NOISE)
        if self.order == 2:
            self._learn_rest(fields[:_FOR_WALLS])

    def _learn_rest(self, fields: Tensor) -> None:
        """Whether the second frame follows better from a first one at rest than from one that stood still before."""
        laws, first = self.infer(fields[:, None, :3]), fields[:, 0]
        errors = []
        for rests in (True, False):
            self.rests.fill_(rests)
            past = torch.stack([self.before(first, laws), first], 1)
            errors.append(float((self.step(past, laws) - fields[:, 1]).square().mean()))
        self.rests.fill_(errors[0] < errors[1])

    # Walls.

    def _without_force(self) -> Tensor:
        """The points `[*x]` at which A is 0, whatever the fields."""
        force = torch.zeros(self.grid, dtype=torch.float64)
        for axis, part in enumerate(self._matrices()):
            force += part.abs().sum(1).view(*[-1 if i == axis else 1 for i in range(force.ndim)])
        return force <= _STILL * force.max()

    def _learn_walls(self, windows: Tensor, mean: Tensor) -> None:
        """What fields are anomalies of, and the best kind of wall for each axis; then mixtures of kinds."""
        axes = [axis for axis, edge in enumerate(self.edges) if edge is not Edge.PERIODIC]
        kinds = list(itertools.product(WALLS.values(), repeat=len(axes)))
        losses = {}
        for i, j in itertools.product(range(2), range(len(kinds))):
            self._set_start(axes, kinds[j], mean * i)
            losses[i, j] = self._loss(windows)
        i, j = min(losses, key=losses.__getitem__)
        self._set_start(axes, kinds[j], mean * i)
        if axes and losses[i, j] > math.log(_LEAST_NOISE):
            self._refine_walls(axes, windows)

    def _set_start(self, axes: Sequence[int], kinds: Sequence[tuple[float, float]], mean: Tensor) -> None:
        self.mean.copy_(mean)
        if axes:
            self._set_walls(axes, torch.tensor([[kind] * ROWS for kind in kinds], dtype=torch.float64))

    def _set_walls(self, axes: Sequence[int], shares: Tensor) -> None:
        """Shares of the two kinds, not below 0, and not above 1 together."""
        shares = shares.clamp(0, 1)
        self.walls[list(axes)] = shares / shares.sum(-1, keepdim=True).clamp_min(1)

    def _loss(self, windows: Tensor) -> float:
        return float(self._free(windows)[1].log().mean())

    def _free(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Laws `[N, J]` of windows with next to no prior, and the share of the energy that they leave unexplained."""
        gram = self._gram(windows)
        N, J = len(gram[0]), self.numbers
        prior = 1e-9 * torch.eye(J, dtype=torch.float64).repeat(N, 1, 1)
        law, _, share = self._fitted(gram, prior, torch.zeros(N, J, dtype=torch.float64))
        return law, share.clamp_min(_TINY)

    def _refine_walls(self, axes: Sequence[int], windows: Tensor) -> None:
        """Levenberg-Marquardt steps on the shares at walls; laws follow them (variable projection)."""
        law, share = self._free(windows)
        loss, damping = float(share.log().mean()), 1e-2
        rows = self._rows(windows.flatten(0, 1))
        past, target = rows[:, :-1], rows[:, -1].flatten(1)
        scale = target.norm(dim=1, keepdim=True).clamp_min(_TINY)

        for _ in range(_WALL_STEPS):
            start = self.walls[list(axes)].clone()
            a, b, slopes = self._symbols(law, growth=_GROWTH)

            forecast = self._moved(past, a, b).flatten(1)
            by_walls = self._by_walls(axes, past, a, b, forecast) / scale[..., None]
            by_law = torch.stack([self._moved(past, p, q).flatten(1) / scale for p, q in slopes], -1)
            basis = torch.linalg.qr(by_law)[0]
            off = ((target - forecast) / scale)[..., None]
            by_walls, off = by_walls - basis @ (basis.mT @ by_walls), off - basis @ (basis.mT @ off)
            weighted = by_walls / share[:, None, None]
            hessian, slope = (weighted.mT @ by_walls).sum(0), (weighted.mT @ off).sum(0)[:, 0]
            for _ in range(4):
                move = torch.linalg.solve(hessian + damping * torch.diag(hessian.diagonal() + 1e-9), slope)
                self._set_walls(axes, start + move.view_as(start))
                new_law, new_share = self._free(windows)
                new = float(new_share.log().mean())
                if new < loss:
                    law, share, damping = new_law, new_share, damping / 5
                    break
                damping *= 10
            else:
                self.walls[list(axes)] = start
                return
            if loss - new < 1e-2:
                return
            loss = new

    def _by_walls(self, axes: Sequence[int], past: Tensor, a: Tensor, b: Tensor | None, here: Tensor) -> Tensor:
        """Derivatives of the next frame `here` by the shares at walls, `[N, points, shares]`, by differences."""
        start = self.walls[list(axes)]

        def frame(flat: Tensor) -> Tensor:
            walls = self.walls.clone()
            walls[list(axes)] = flat.view_as(start)
            return self._moved(past, a, b, walls).flatten(1)

        flat = start.flatten()
        units = _DIFFERENCE * torch.eye(len(flat), dtype=flat.dtype)
        return torch.stack([(frame(flat + unit) - here) / _DIFFERENCE for unit in units], -1)

    # Fields and rows.

    def _rows(self, past: Tensor) -> Tensor:
        """`[B, P, *x, c]` to anomalies `[N, P, *x]` in float64."""
        return (past.double() - self.mean).movedim(-1, 1).flatten(0, 1)

    def _fields(self, rows: Tensor, like: Tensor) -> Tensor:
        return (rows.unflatten(0, (-1, self.channels)).movedim(1, -1) + self.mean).to(like.dtype)

    def _matrices(self, walls: Tensor | None = None) -> list[Tensor]:
        """The parts of A along each axis, A scaled to [-2, 0]."""
        axes = zip(self.grid, self.edges, self.walls if walls is None else walls, self._weights, strict=True)
        return [matrix(n, edge, shares) * (2 / self.size * weight) for n, edge, shares, weight in axes]

    def _moved(self, past: Tensor, a: Tensor, b: Tensor | None, walls: Tensor | None = None) -> Tensor:
        """a(A) of the last of `past [N, P, *x]`, minus b(A) of the one before; functions by their values at nodes."""
        matrices = self._matrices(walls)
        forecast = applied(matrices, past[:, -1], a @ self._to_terms)
        return forecast if b is None else forecast - applied(matrices, past[:, -2], b @ self._to_terms)

    def _gram(self, windows: Tensor) -> Gram:
        """Products of the polynomials of past frames with each other and with the next frame; the energy of that one.

        `[N, 2 L, 2 L]`, `[N, 2 L]` and `[N]`; the products are relative to the energy.
        """
        matrices = self._matrices()
        parts = []
        for window in windows:
            triples = window.unfold(1, self.order + 1, 1).movedim(-1, 2).flatten(0, 1)
            rows = self._rows(triples).unflatten(0, (-1, self.channels))
            basis = polynomials(matrices, rows[:, :, :-1].flip(2), _TERMS)
            if self.order == 2:
                basis[:, :, 1] *= -1
            basis, y = basis.flatten(2, 3), rows[:, :, -1].flatten(2)[..., None]
            energy = y.square().sum((0, 2, 3)).clamp_min(_TINY)[:, None, None]
            gram, moment = ((basis @ basis.mT).sum(0) / energy, (basis @ y).sum(0) / energy)
            parts.append((gram, moment[..., 0], energy[:, 0, 0]))
        gram, moment, energy = (torch.cat(part) for part in zip(*parts, strict=True))
        return gram, moment, energy

    # Laws.

    def _powers(self) -> list[Tensor]:
        e = self._eigenvalues
        return [torch.ones_like(e), e, e.square() / self.size]

    def _rates(self, law: Tensor) -> tuple[Tensor, Tensor]:
        """d and s of laws of second order, at the nodes."""
        one, e, square = self._powers()
        return law[:, :1] * one + law[:, 1:2] * e, law[:, 2:3] * one + law[:, 3:4] * e + law[:, 4:] * square

    def _symbols(
        self, law: Tensor, *, growth: float = 0.0
    ) -> tuple[Tensor, Tensor | None, list[tuple[Tensor, Tensor | None]]]:
        """Values of a and b at the nodes, `[N, L]`, and their derivatives by each coefficient.

        Rates are bounded by how much fields may grow in a step, as a logarithm: a search must pass through growth.
        """
        powers = self._powers()
        if self.order == 1:
            c = law[:, :1] * powers[0] + law[:, 1:2] * powers[1] + law[:, 2:] * powers[2]
            a = c.clamp(-_DECAY, growth).exp()
            return a, None, [(a * (c <= growth) * p, None) for p in powers]
        d, s = self._rates(law)
        free_d, free_s = d >= -growth, s >= -growth
        d, s = d.clamp(-growth, _DECAY), s.clamp_min(-growth)
        half = (-d / 2).exp()
        cos, sinc = _cos_sinc(s - d.square() / 4)
        a, b = 2 * half * cos, (-d).exp()
        a_d, a_s = (-a / 2 + half * sinc * d / 2) * free_d, -half * sinc * free_s
        slopes: list[tuple[Tensor, Tensor | None]] = [(a_d * p, -b * free_d * p) for p in powers[:2]]
        return a, b, slopes + [(a_s * p, torch.zeros_like(b)) for p in powers]

    def _rest(self, law: Tensor) -> Tensor:
        """By what a step multiplies fields that are at rest, at the nodes."""
        d, s = self._rates(law)
        d, s = d.clamp(0, _DECAY), s.clamp_min(0)
        cos, sinc = _cos_sinc(s - d.square() / 4)
        return (-d / 2).exp() * (cos + d / 2 * sinc)

    def _terms(self, a: Tensor, b: Tensor | None) -> Tensor:
        """Chebyshev coefficients of a and of b, side by side."""
        return torch.cat([x @ self._to_terms for x in (a, b) if x is not None], -1)

    def _fitted(self, gram: Gram, prior: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Laws `[N, J]`, curvatures, and the share of the energy that they leave unexplained."""
        products, moment, _ = gram

        def share(law: Tensor) -> Tensor:
            a, b, _ = self._symbols(law, growth=_GROWTH)
            x = self._terms(a, b)
            return (1 - 2 * (x * moment).sum(1) + (x * (products @ x[..., None])[..., 0]).sum(1)).clamp_min(0)

        def cost(law: Tensor) -> Tensor:
            away = law - mean
            return share(law) + (away * (prior @ away[..., None])[..., 0]).sum(1)

        starts = [mean]
        for value in _SPEEDS if self.order == 2 else _RATES:
            start = mean.clone()
            start[:, -2] = -value if self.order == 2 else value
            starts.append(start)
        ranks = torch.stack([cost(start) for start in starts]).argsort(0)
        ends = []
        for index in ranks[:2]:
            law = torch.stack(starts)[index, torch.arange(len(mean))]
            ends.append(self._descended(law, gram, prior, mean, cost))
        better = ends[1][2] < ends[0][2]
        law = torch.where(better[:, None], ends[1][0], ends[0][0])
        return law, torch.where(better[:, None, None], ends[1][1], ends[0][1]), share(law)

    def _descended(
        self, law: Tensor, gram: Gram, prior: Tensor, mean: Tensor, cost: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Laws after Levenberg-Marquardt steps, with a damping for each row; curvatures and costs there."""
        products, moment, _ = gram
        least = cost(law)
        damping, hessian = torch.full_like(least, 1e-4), prior
        for _ in range(_STEPS):
            a, b, slopes = self._symbols(law, growth=_GROWTH)
            x = self._terms(a, b)
            jacobian = torch.stack([self._terms(*slope) for slope in slopes], 2)
            hessian = jacobian.mT @ products @ jacobian + prior
            off = moment - (products @ x[..., None])[..., 0]
            slope = (jacobian.mT @ off[..., None] + prior @ (mean - law)[..., None])[..., 0]
            added = damping[:, None] * (hessian.diagonal(dim1=-2, dim2=-1) + _LEAST_NOISE)
            new = law + torch.linalg.solve(hessian + torch.diag_embed(added), slope)
            new_cost = cost(new)
            better = new_cost < least
            law, least = torch.where(better[:, None], new, law), torch.where(better, new_cost, least)
            damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e6)
        return law, hessian, least


def _cos_sinc(q: Tensor) -> tuple[Tensor, Tensor]:
    """cos(sqrt q) and sin(sqrt q) / sqrt q, and their continuation below 0."""
    root = q.abs().clamp_min(_TINY).sqrt()
    limited = root.clamp_max(40)
    cos = torch.where(q >= 0, root.cos(), limited.cosh())
    return cos, torch.where(q >= 0, root.sin(), limited.sinh()) / root


def _typical(law: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of laws `[B, J]`, of those that fit well and lie near their median."""
    law = law[share <= share.quantile(0.75).clamp_min(_RIGHT)]
    centre = law.median(0).values
    width = 1.48 * (law - centre).abs().median(0).values + 1e-3
    near = ((law - centre).abs() < 5 * width).all(1)
    law = law[near] if near.sum() > 2 * law.shape[1] else law
    covariance = torch.cov(law.T)
    return law.mean(0), covariance + torch.diag(1e-4 * covariance.diagonal() + _LEAST_VARIANCE)
