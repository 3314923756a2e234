"""Triton's interpreter, which runs kernels on CPU tensors where there is no GPU, without what it does over and over."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any


def patch_once() -> None:
    """Every launch patches Triton's language, and so does every call of a function in it; here each part is, once.

    Sums and products of integers in 64 bits, which a check of overflow reads in debug mode, are left out without it.
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
