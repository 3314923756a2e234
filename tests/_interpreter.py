"""Triton's interpreter, which runs kernels on CPU tensors where there is no GPU, without what it does over and over."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any


def patch_once_a_launch() -> None:
    """A launch patches Triton's language; the calls of functions in it do so again, for a third of a kernel's time."""
    from triton import language
    from triton.runtime import interpreter

    patch, call = interpreter._patch_lang, interpreter.InterpretedFunction.__call__
    patched: set[frozenset[str]] = set()

    @cache
    def modules(function: Any) -> frozenset[str]:
        """The modules that `patch` changes for this function."""
        found = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        return frozenset(module.__name__ for module in found if module in (language, language.core))

    def patch_launch(function: Any) -> Any:
        patched.clear()
        patched.add(modules(function))
        return patch(function)

    def patch_call(function: Any) -> Any:
        if (changed := modules(function)) not in patched:
            patched.add(changed)
            patch(function)

    def called(self: Any, *given: Any, **options: Any) -> Any:
        interpreter._patch_lang = patch_call
        try:
            return call(self, *given, **options)
        finally:
            interpreter._patch_lang = patch_launch

    interpreter._patch_lang = patch_launch
    interpreter.InterpretedFunction.__call__ = called
