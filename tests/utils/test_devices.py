"""Copies between devices."""

import pytest
import torch

from enma_fast.utils.devices import to_device


def test_a_host_copy_is_plain(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pytest.fail("pinned for no GPU"))
    x = torch.arange(3)
    assert to_device(x, torch.device("cpu")) is x
    assert to_device(x, torch.device("meta")).device.type == "meta"


def test_a_copy_to_a_gpu_does_not_wait(monkeypatch):
    x, pinned, there, calls = torch.arange(3), torch.arange(3), object(), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned if self is x else pytest.fail("another"))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *given, **named: calls.append((self, given, named)) or there)
    device = torch.device("cuda", 1)
    assert to_device(x, device) is there
    ((source, given, named),) = calls
    assert source is pinned
    assert given == (device,)
    assert named == {"non_blocking": True}


@pytest.mark.gpu
def test_a_copy_has_the_values():
    x = torch.randn(1000)
    there = to_device(x, torch.device("cuda", torch.cuda.current_device()))
    assert torch.equal(there.cpu(), x)
    assert to_device(there, there.device) is there
