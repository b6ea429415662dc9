"""Python's garbage collector rests during the import, and works again after it."""

import gc

import pytest

from algorithm.process.collector import uncollected


@pytest.fixture(autouse=True)
def _as_it_was():
    """What was frozen is given back, and the collector is as it was before."""
    was_enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if was_enabled else gc.disable)()


def test_nothing_is_collected_inside_and_all_of_it_stays():
    """Off inside and on after; what was made inside is never looked at again."""
    gc.enable()
    with uncollected():
        assert not gc.isenabled()
        made = [[] for _ in range(10)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(made)


def test_it_is_on_again_after_a_failure():
    """As when a library is missing."""
    gc.enable()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()


def test_one_that_was_off_stays_off():
    """A program that has its own reasons keeps them."""
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
