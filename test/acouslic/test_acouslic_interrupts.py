"""When a signal interrupts, and when it waits or is ignored."""

import os
import signal
import threading

import pytest

from acouslic import interrupts
from acouslic.interrupts import Interrupts, signals_held


@pytest.fixture
def installed():
    """Handlers, taken back at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = Interrupts()
    found.install()
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def stop(number=signal.SIGTERM):
    """A signal to this process."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_and_is_remembered(installed, number):
    """As Ctrl-C does, with the number."""
    with pytest.raises(KeyboardInterrupt) as caught:
        stop(number)
    assert caught.value.args == (number,)
    assert installed.number == number


@pytest.mark.usefixtures("installed")
def test_a_second_one_counts_after_a_while(monkeypatch):
    """Not during the clean-up; later, where the first was swallowed."""
    with pytest.raises(KeyboardInterrupt):
        stop()
    stop()
    monkeypatch.setattr(interrupts, "CLEAN_UP_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        stop()


def test_it_waits_for_the_end_of_an_import(installed):
    """Nothing inside is interrupted; the end is."""
    reached = []

    def importing():
        with installed.held():
            stop()
            reached.append(installed.number)

    with pytest.raises(KeyboardInterrupt):
        importing()
    assert reached == [None]
    with installed.held():
        pass


def test_what_is_ignored_stays_so():
    """A shell's background job does not hear Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        Interrupts().install()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, on_term)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_held_signals_are_answered_at_the_end(number):
    """By what answered them before, once, also where the block ends with an error; an ignored one stays ignored."""
    done = []

    def work():
        with signals_held():
            stop(number)
            stop(signal.SIGTERM)
            done.append(True)
            raise ValueError

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert done
    assert caught.value.args == (number,)
    signal.signal(number, signal.SIG_IGN)
    with signals_held():
        stop(number)
    assert signal.getsignal(number) == signal.SIG_IGN


def test_another_thread_holds_nothing():
    """Python answers signals in the main thread alone, and lets no other thread set what answers them."""
    done = []

    def work():
        with signals_held():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
