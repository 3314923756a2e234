"""Members by libenma are the golden ones, which Python's are too."""

import pytest

import enma_fast
from enma_fast.models.checkpoint import PRETRAINED

from .._extension import needs_native
from ..golden import _members
from ..golden.test_golden import isa, recorded
from ._libenma import SAME_CODE, Library, Observations


@needs_native
@pytest.mark.skipif(not SAME_CODE, reason="Python runs the code of another compiler")
@pytest.mark.parametrize(("name", "form"), _members.CASES)
def test_members_of_c_are_those_of_python(library: Library, name: str, form: str) -> None:
    expected, model = recorded("native", isa(), name), enma_fast.load_model(name)
    opened = library.open(PRETRAINED / name, number_format=list(_members.FORMATS).index(form))
    for task in _members.TASKS:
        session = opened.session(seed=_members.SEED, num_members=_members.MEMBERS, num_frames=_members.FRAMES)
        given = _members.inputs(model, task)
        if task == "points":
            session.observe_points(Observations.of(given["points"], given["history"]), None)
        else:
            session.observe(given["history"], given.get("context"))
        found = session.forecast()
        session.free()
        assert _members.digest(found) == expected[f"{name}/{task}/{form}"], task
