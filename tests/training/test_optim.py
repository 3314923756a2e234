"""Muon against a naive loop, its orthogonalisation by singular values, and which parameters go where."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from enma_fast.models.codecs.conv import ConvCodec
from enma_fast.models.model import Dynamics
from enma_fast.training.optim import _BETAS, Muon, build, learning_rate, orthogonalise
from enma_fast.training.stage import Optimizer

from .._tiny import CONFIGS

MUON = Optimizer(kind="muon", weight_decay=0.1)


@pytest.mark.parametrize("shape", [(24, 24), (16, 50), (50, 16), (3, 20, 64), (2, 3, 40, 17), (1, 5)])
def test_orthogonalised_singular_values_are_near_one(shape):
    g = torch.randn(*shape, dtype=torch.float64)
    x = orthogonalise(g)
    assert x.shape == g.shape
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    # Small singular values take more steps to rise; the coefficients let the others swing around 1.
    _, found, _ = torch.linalg.svd(x, full_matrices=False)
    assert found.max() < 1.25
    assert found[(s / s.norm(dim=-1, keepdim=True)).sort(-1, descending=True)[0] > 0.02].min() > 0.65
    # The singular vectors stay: u^T x v is diagonal.
    inner = u.mT @ x @ v.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-10


def test_orthogonalising_does_not_see_the_scale_or_the_batch():
    g = torch.randn(3, 20, 12, dtype=torch.float64)
    x = orthogonalise(g)
    torch.testing.assert_close(orthogonalise(1e3 * g), x)
    for one, expected in zip(g, x, strict=True):
        torch.testing.assert_close(orthogonalise(one), expected)
    torch.testing.assert_close(orthogonalise(g.mT), x.mT)


def test_a_zero_gradient_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_muon_is_the_naive_loop():
    # A convolution is the matrix of its output channels and all else.
    shapes = [(8, 6), (6, 20), (8, 6), (20, 6), (4, 3, 1, 5), (4, 3, 1, 5)]
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    expected = [p.detach().clone() for p in params]
    momenta = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    optimizer = Muon(params, lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        grads = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        for i, grad in enumerate(grads):
            params[i].grad = grad.clone()
            # A parameter without a gradient is left alone.
            if step == 1 and i == 1:
                params[i].grad = None
                continue
            momenta[i] = 0.9 * momenta[i] + 0.1 * grad
            direction = orthogonalise((0.1 * grad + 0.9 * momenta[i]).flatten(1))
            size = 0.2 * math.sqrt(max(direction.shape))
            expected[i] = expected[i] - 0.02 * 0.1 * expected[i] - 0.02 * size * direction.view(shapes[i])
        optimizer.step()
        for p, value in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), value, rtol=1e-12, atol=1e-12)


def test_a_muon_step_is_as_large_as_an_adamw_step():
    # AdamW moves an entry by about 0.2 learning rates (root mean square), whatever the shape.
    for shape in ((64, 64), (32, 256), (256, 32)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        Muon([p], lr=1.0).step()
        rank = min(shape)
        expected = 0.2 * math.sqrt(max(shape)) * math.sqrt(rank / math.prod(shape))
        assert expected == pytest.approx(0.2)
        assert p.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("name", ["paper", "relative"])
def test_every_parameter_has_one_optimiser(name):
    module = Dynamics(CONFIGS[name])
    adamw, muon = build(module, MUON)
    names = {id(p): key for key, p in module.named_parameters()}
    groups = [[names[id(p)] for group in o.param_groups for p in group["params"]] for o in (adamw, muon)]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    matrices = re.compile(
        r"(context|trunk)\.blocks\.\d\.(attention\.(qkv|out)|mlp\.(gate_up|down))\.weight"
        r"|step\.velocity\.blocks\.\d\.(modulation|up|down)\.weight"
    )
    expected = {key for key in names.values() if matrices.fullmatch(key)}
    assert len(expected) == 4 * 4 + 2 * 3
    assert set(groups[1]) == expected
    # The embeddings, the last layer and all vectors stay with AdamW.
    for key in ("context.embed.weight", "context.start", "trunk.mask", "step.velocity.outward.weight"):
        assert key in groups[0]
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == _BETAS
    for optimizer in (adamw, muon):
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        assert optimizer.param_groups[0]["lr"] == MUON.learning_rate


def test_adamw_alone_has_everything():
    module = Dynamics(CONFIGS["relative"])
    (optimizer,) = build(module, replace(MUON, kind="adamw"))
    assert len(optimizer.param_groups[0]["params"]) == len(list(module.parameters()))


def test_muon_has_the_inner_layers_of_a_tokenizer():
    module = ConvCodec(replace(CONFIGS["relative"].codec, width=16, max_width=16))
    names = {id(p): key for key, p in module.named_parameters()}
    adamw, muon = [[names[id(p)] for p in o.param_groups[0]["params"]] for o in build(module, MUON)]
    assert sorted(adamw + muon) == sorted(names.values())
    # Nothing that maps from or to fields and latent frames, no vector and no row of weights.
    assert {key.split(".")[0] for key in muon} == {"down", "up"}
    assert {key.split(".", 2)[2] for key in muon} == {
        "conv.weight",
        "conv.conv.weight",
        "linear.weight",
        "squeeze.0.weight",
        "squeeze.2.weight",
    }
    assert "down.0.attend.weight" in adamw


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    config = Optimizer(warmup_steps=10, learning_rate=1e-2, final_learning_rate=1e-4)
    rates = [learning_rate(step, config, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([1e-3 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1e-2)
    assert rates[60] == pytest.approx((1e-2 + 1e-4) / 2)
    assert rates[35] == pytest.approx(1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[110] == pytest.approx(1e-4)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    # Beyond the end it stays, and without a warm-up it starts at the top.
    assert learning_rate(500, config, 110) == pytest.approx(1e-4)
    assert learning_rate(0, replace(config, warmup_steps=0), 110) == pytest.approx(1e-2)
    assert learning_rate(3, replace(config, warmup_steps=5), 5) == pytest.approx(8e-3)
