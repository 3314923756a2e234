"""Members of a finished store, from which longer forecasts of the same request go on.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import FieldFile
from ..errors import EnmaError
from ..store.read import read_forecast, zarr_errors

log = logging.getLogger("enma_fast")

# Attribute with a hash for each trajectory: of its context and of what the model is told of both.
BESIDE = "context_and_known_sha256"
# What has to be the same in the request of the longer forecast, as stores write it.
_SAME = ("task", "observed_frames", "seed", "model_sha256", "config_sha256", "sampling", "precision")


class StoredMembers:
    """The members of the store at a path; `EnmaError` unless it is finished and holds them on a grid."""

    def __init__(self, path: Path) -> None:
        self.path, self._store = path, read_forecast(path)
        self.channels = list(self._store.attrs["channels"])
        if self.channels[0] not in self._store:
            raise EnmaError(f"{path}: holds statistics and no members, so there is nothing to go on from")
        self.num_frames = int(self._store.sizes["time"])

    def check(
        self,
        data: FieldFile,
        trajectories: Sequence[int],
        members: range,
        attributes: Mapping[str, Any],
        beside: Sequence[str],
    ) -> None:
        """Raise `EnmaError` unless the store is a shorter forecast of the same request.

        Its attributes are given, and `beside` the hashes of contexts and known inputs up to the last frame of the
        store. A store without such hashes gives a warning.
        """
        store = self._store
        for name in _SAME:
            if store.attrs.get(name) != attributes.get(name):
                raise EnmaError(
                    f"{self.path}: its {name} is {store.attrs.get(name)}, that of the longer forecast "
                    f"{attributes.get(name)}; give the same"
                )
        stored = set(store["trajectory"].values.tolist()), set(store["realization"].values.tolist())
        for what, wanted, held in zip(("trajectory", "member"), (trajectories, members), stored, strict=True):
            if lacking := sorted(set(wanted) - held):
                raise EnmaError(f"{self.path}: holds no {what} {lacking[0]}; forecast it from the beginning")
        held = store.attrs.get(BESIDE)
        if beside and held is None:
            log.warning("%s: does not say from which context and known inputs; they have to be the same", self.path)
        elif beside or held is not None:
            own = dict(zip(store["trajectory"].values.tolist(), held, strict=True))
            for number, digest in zip(trajectories, beside or [""] * len(trajectories), strict=True):
                if own[number] != digest:
                    raise EnmaError(
                        f"{self.path}: trajectory {number} was forecast from another context or other known inputs; "
                        "give the same"
                    )
        seen = int(store.attrs["observed_frames"])
        places = self._places(trajectories)
        for c, name in enumerate(data.channels if seen else ()):
            with zarr_errors(self.path, f"{name}_observed"):
                observed = store[f"{name}_observed"].values[places]
            if not np.array_equal(observed, data.u[data.places(trajectories), :seen, ..., c], equal_nan=True):
                raise EnmaError(f"{self.path}: its observed frames of {name} are not those of {data.path}")

    def frames(self, trajectories: Sequence[int], members: range) -> np.ndarray:
        """Their frames `[B, K, T, *x, c]`."""
        numbers = self._store["realization"].values.tolist()
        first = numbers.index(members.start)
        kept = slice(first, first + len(members))
        with zarr_errors(self.path):
            parts = [
                [self._store[name][place, kept].values for name in self.channels]
                for place in self._places(trajectories)
            ]
        return np.stack([np.stack(fields, -1) for fields in parts])

    def _places(self, trajectories: Sequence[int]) -> list[int]:
        numbers = self._store["trajectory"].values.tolist()
        return [numbers.index(number) for number in trajectories]
