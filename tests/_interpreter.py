"""Triton's interpreter, which runs kernels on CPU tensors where there is no GPU, without what it does over and over."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any


def reuse_types() -> None:
    """Types of blocks, what tensors know from their types, and NumPy's types are found once, not in every operation.

    All are fixed by the type of a number and the shape of a block. Operands that agree in both are taken as they are.
    """
    from triton import language
    from triton.runtime import interpreter

    core = language.core
    scalar, block, pointer, number = core.dtype, core.block_type, core.pointer_type, core.constexpr
    make_block, make_tensor = block.__init__, core.tensor.__init__
    blocks: dict[Any, dict[str, Any]] = {}
    tensors: dict[Any, dict[str, Any]] = {}

    def key_of(element: Any, shape: Any) -> Any:
        """What a type is known by; None of pointers and of shapes that are no numbers."""
        sizes = tuple(size.value if type(size) is number else size for size in shape)
        return (element.name, sizes) if type(element) is scalar and all(type(size) is int for size in sizes) else None

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = key_of(element_ty, shape) if isinstance(shape, list | tuple | core.tuple) else None
        if key in blocks:
            self.__dict__.update(blocks[key])
            return
        make_block(self, element_ty, shape)
        if key is not None:
            # A tensor of this type finds itself by it.
            self.key = key
            blocks[key] = dict(self.__dict__)

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        key = type.__dict__.get("key", type.name if type.__class__ is scalar else None)
        if key in tensors:
            self.__dict__.update(tensors[key], handle=handle, type=type)
            return
        make_tensor(self, handle, type)
        if key is not None:
            tensors[key] = {name: value for name, value in self.__dict__.items() if name not in ("handle", "type")}

    in_numpy = interpreter._get_np_dtype
    found: dict[str, Any] = {}

    def numpy_type(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, block) else kind
        if isinstance(element, pointer):
            return in_numpy(element)
        if element.name not in found:
            found[element.name] = in_numpy(element)
        return found[element.name]

    semantic = language.semantic.TritonSemantic
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value

    def checked(self: Any, lhs: Any, rhs: Any, *given: Any, **options: Any) -> Any:
        both = type(lhs) is core.tensor and type(rhs) is core.tensor
        if both and lhs.dtype.name == rhs.dtype.name and lhs.dtype.name in ("fp32", "int32"):
            return self.broadcast_impl_value(lhs, rhs)
        return check(self, lhs, rhs, *given, **options)

    def of_one_shape(self: Any, lhs: Any, rhs: Any) -> Any:
        key = lhs.type.__dict__.get("key")
        if key is not None and "key" in rhs.type.__dict__ and rhs.type.key[1] == key[1]:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value = checked, of_one_shape
    block.__init__, core.tensor.__init__, interpreter._get_np_dtype = init_block, init_tensor, numpy_type


def patch_once() -> None:
    """Every launch patches Triton's language, and so does every call of a function in it; here each part is, once.

    With the sums and products of integers that a check of overflow would read: it reads them in debug mode alone.
    """
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    patched: set[frozenset[str]] = set()

    class Kept:
        """In place of what takes the patch back after a launch; all kernels of a process are interpreted."""

        def restore(self) -> None:
            pass

    @cache
    def modules(function: Any) -> frozenset[str]:
        """The modules that `patch` changes for this function."""
        found = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        return frozenset(module.__name__ for module in found if module in (language, language.core))

    def patch_lang(function: Any) -> Any:
        if (changed := modules(function)) not in patched:
            patched.add(changed)
            patch(function)
        return Kept()

    interpreter._patch_lang = patch_lang
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
