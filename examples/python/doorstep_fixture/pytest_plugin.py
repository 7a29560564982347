"""Fixtures of pytest: `doorstep`, a new homeserver for the test; `doorstep_factory`, which makes what it is told."""

import pytest

from . import Doorstep


@pytest.fixture
def doorstep_factory():
    """Makes homeservers with the arguments of `Doorstep`, which end with the test."""
    made = []

    def make(**arguments):
        doorstep = Doorstep(**arguments)
        made.append(doorstep)
        return doorstep.start()

    yield make
    for doorstep in made:
        doorstep.stop()


@pytest.fixture
def doorstep(doorstep_factory):
    """A new homeserver, in memory, with nobody on it."""
    return doorstep_factory()
