"""A stand-in for a GPU: tensors that say they are on one, whose values are on the CPU.

As on a GPU an operation takes tensors of one device, and beside them numbers and, as an index, tensors of the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
_aten = torch.ops.aten
# Operations that take tensors of the CPU beside those of a GPU.
_MIXED = {
    _aten.copy_.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
# Those that take no number of the CPU.
_STRICT = {_aten.cat.default, _aten.stack.default}


class OnDevice(Tensor):
    """A tensor on the stand-in."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device="meta",
        )
        made.value = value
        return made  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def data(self) -> Tensor:
        return OnDevice(self.value)

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, OnDevice)
        self.value = other.value

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        return OnDevice(torch.tensor(data, dtype=dtype or self.dtype))

    def tolist(self) -> Any:
        return self.value.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.value!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """Makes tensors on the stand-in where a GPU is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = {id(x.value): x for x in tensors if isinstance(x, OnDevice)}
    others = [x for x in tensors if not isinstance(x, OnDevice) and (x.dim() or func in _STRICT)]
    if there and others and func not in _MIXED:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
    if func in _MIXED and not isinstance(args[0], OnDevice) and there and func is not _aten.copy_.default:
        raise RuntimeError(f"{func}: an index on cuda:0 of a tensor on cpu")
    asked = kwargs.get("device")
    to_cpu = func is _aten._local_scalar_dense.default or (asked is not None and torch.device(asked).type == "cpu")
    on_device = (bool(there) and not to_cpu) or (asked is not None and torch.device(asked).type in ("cuda", "meta"))
    if func is _aten.copy_.default:
        on_device = isinstance(args[0], OnDevice)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    args, kwargs = tree_map(lambda x: x.value if isinstance(x, OnDevice) else x, (args, kwargs))
    out = func(*args, **kwargs)

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return there.get(id(x)) if id(x) in there else OnDevice(x) if on_device else x

    return tree_map(wrapped, out)
