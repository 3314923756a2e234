"""What all refusals of libenma have in common."""

from collections.abc import Callable
from typing import Any

import pytest

from ._libenma import Failure


def refused(status: int, message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(Failure, match=message) as failure:
        call()
    assert failure.value.status == status, failure.value.message
    assert "\n" not in failure.value.message
