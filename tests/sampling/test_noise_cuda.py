"""Noise on a GPU: the bits of the CPU, and a CUDA graph that follows its input tensors."""

import pytest
import torch

from enma_fast.ops.frame_rows import order_of
from enma_fast.ops.philox_normal import philox_normal


@pytest.mark.gpu
def test_a_captured_graph_gives_the_bits_of_the_cpu():
    members, tokens = torch.arange(5), torch.arange(7)
    seed, frame, mask_step = (torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(3))

    def draw(seed, frame, mask_step, members, tokens):
        order = order_of(seed=seed, members=members, frame=frame, num_tokens=7)
        noise = philox_normal(seed=seed, members=members, frame=frame, mask_step=mask_step, tokens=tokens, channels=6)
        return order, noise

    inputs = (seed, frame, mask_step, members.cuda(), tokens.cuda())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        draw(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = draw(*inputs)

    for values in [(1, 2, 3), (2**32 - 1, 9, 0)]:
        for word, value in zip((seed, frame, mask_step), values, strict=True):
            word.fill_(value)
        graph.replay()
        for got, expected in zip(captured, draw(*values, members, tokens), strict=True):
            assert torch.equal(got.cpu(), expected)
