"""Which of the messages under way it is over which a broker ends the link: found, blamed only when alone."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.mqtt.breaker import BLOCKED_S, MAX_BLOCKED, MAX_SUSPECTS, Breaker
from agent.mqtt.packets import Outgoing

NOT_AUTHORIZED, TOO_LARGE, TAKEN_OVER = 0x87, 0x95, 0x8E


def message(number: int) -> Outgoing:
    return Outgoing(f"topic/{number}", b"payload")


@given(st.integers(1, 12), st.data())
def test_the_one_that_ends_the_link_is_found_and_no_other_is_ever_blamed(count: int, data: st.DataObject) -> None:
    """A link on which as many messages as may go are under way, and end with it when the poison arrives."""
    poison = set(data.draw(st.sets(st.integers(0, count - 1), max_size=3)))
    rng = random.Random(data.draw(st.integers(0, 9999)))
    breaker, waiting, delivered, blamed = Breaker(), list(range(count)), set(), set()
    for _ in itertools.takewhile(lambda _: waiting, range(500)):
        under_way = []
        for number in rng.sample(waiting, len(waiting)):
            if breaker.may_go(message(number)):
                breaker.sent(message(number))
                under_way.append(number)
        fatal = next((number for number in under_way if number in poison), None)
        if fatal is not None and breaker.ended(NOT_AUTHORIZED, others=False):
            (number,) = under_way
            breaker.convict(message(number), NOT_AUTHORIZED, 0.0)
            blamed.add(number)
            waiting.remove(number)
        for number in under_way:
            taken = fatal is None
            breaker.settled(message(number), taken=taken)
            if taken:
                delivered.add(number)
                waiting.remove(number)
    assert (blamed, delivered) == (poison, set(range(count)) - poison)


def test_nothing_is_sent_beside_a_suspect_and_a_suspect_only_by_itself() -> None:
    breaker = Breaker()
    breaker.sent(message(1))
    assert not breaker.ended(NOT_AUTHORIZED, others=False), "the first time it may be by chance"
    breaker.settled(message(1), taken=False)
    breaker.sent(message(2))
    assert not breaker.may_go(message(1))
    assert breaker.may_go(message(3)), "those that are above suspicion flow on"
    breaker.settled(message(2), taken=True)
    assert breaker.may_go(message(1))
    breaker.sent(message(1))
    assert not breaker.may_go(message(3))
    assert breaker.ended(NOT_AUTHORIZED, others=False)


def test_on_a_topic_that_is_not_allowed_it_is_found_though_no_message_is_ever_the_same() -> None:
    breaker = Breaker()
    ends = 0
    for second in range(10):
        report, other = Outgoing("status", b"at %d" % second, retain=True), message(second)
        guilty = False
        for one in (report, other):
            if breaker.may_go(one):
                breaker.sent(one)
        under_way = breaker.under_way
        if report in under_way:
            ends += 1
            guilty = breaker.ended(NOT_AUTHORIZED, others=False)
        for one in under_way:
            breaker.settled(one, taken=report not in under_way)
        if guilty:
            breaker.convict(report, NOT_AUTHORIZED, 0.0)
            break
    assert (ends, breaker.blocked("status", 1.0)) == (2, NOT_AUTHORIZED)
    assert breaker.may_go(Outgoing("status", b"x")), "to retain is a permission of its own"


def test_of_messages_that_are_too_large_each_stands_for_itself() -> None:
    breaker = Breaker()
    breaker.sent(Outgoing("topic", b"large"))
    breaker.ended(TOO_LARGE, others=False)
    breaker.settled(Outgoing("topic", b"large"), taken=False)
    breaker.sent(Outgoing("topic", b"small"))
    assert not breaker.on_trial


def test_a_suspect_waits_for_what_others_have_under_way() -> None:
    breaker = Breaker()
    breaker.sent(message(1))
    breaker.ended(NOT_AUTHORIZED, others=True)
    breaker.settled(message(1), taken=False)
    assert not breaker.may_go(message(1), others=True)
    assert breaker.may_go(message(2), others=True)
    assert breaker.may_go(message(1), others=False)
    breaker.sent(message(1))
    assert breaker.on_trial, "and others wait for it"


@pytest.mark.parametrize(("code", "others"), [(TAKEN_OVER, False), (None, False), (NOT_AUTHORIZED, True)])
def test_nobody_is_blamed_for_another_reason_or_where_it_may_have_been_something_else(code, others) -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.sent(message(1))
        assert not breaker.ended(code, others=others)
        breaker.settled(message(1), taken=False)


def test_one_that_is_taken_after_all_is_above_suspicion() -> None:
    breaker = Breaker()
    for taken in (False, True):
        breaker.sent(message(1))
        if not taken:
            breaker.ended(NOT_AUTHORIZED, others=False)
        breaker.settled(message(1), taken=taken)
    breaker.sent(message(1))
    assert not breaker.ended(NOT_AUTHORIZED, others=False)


def test_a_topic_that_is_not_allowed_is_left_alone_for_a_while_a_large_message_is_no_fault_of_its_topic() -> None:
    breaker = Breaker()
    breaker.convict(message(1), NOT_AUTHORIZED, 10.0)
    breaker.convict(message(2), TOO_LARGE, 10.0)
    assert breaker.blocked("topic/1", 10.0 + BLOCKED_S - 1) == NOT_AUTHORIZED
    assert breaker.blocked("topic/1", 10.0 + BLOCKED_S) is None
    assert breaker.blocked("topic/2", 11.0) is None


def test_what_is_remembered_is_bounded() -> None:
    breaker = Breaker()
    for number in range(MAX_SUSPECTS + MAX_BLOCKED):
        breaker.sent(message(number))
        breaker.ended(NOT_AUTHORIZED, others=False)
        breaker.settled(message(number), taken=False)
        breaker.convict(message(-number), NOT_AUTHORIZED, 0.0)
    first, *_, last = range(MAX_SUSPECTS + MAX_BLOCKED)
    breaker.sent(message(9_999))
    assert breaker.may_go(message(first)), "forgotten"
    assert not breaker.may_go(message(last))
    assert breaker.blocked(f"topic/{-first}", 1.0) is None
    assert breaker.blocked(f"topic/{-last}", 1.0) == NOT_AUTHORIZED
