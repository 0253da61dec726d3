"""Whatever fails: every request is answered, rightly, and none is acknowledged before its answer is safe."""

from pathlib import Path

import pytest

from faults import lab
from faults.report import failures
from faults.schedule import schedule
from faults.world import World

SEED = 20
MINUTES = ((5, 5), (10, 10), (15, 15), (30, 30), (5, 20))
"""Offline and online, in turn."""
COMPRESSED = 60
"""A minute in a second."""


def test_a_thousand_requests_through_twenty_faults_are_answered_and_none_is_acknowledged_early(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        faults = schedule(SEED, 20, without=world.spared())
        found = lab.campaign(world, faults, 1_000, SEED)
        assert failures({"campaign": found, "crashes": world.crashes}) == []
        assert found["local"]["requests"] + found["cloud"]["requests"] == 1_000
        assert world.restarts >= 5
        if not world.clock.available:
            pytest.skip("all was well, but clock jumps were not tried: needs libfaketime")


def test_an_agent_that_is_offline_again_and_again_answers_what_was_asked_meanwhile_once_it_is_online(
    tmp_path: Path,
) -> None:
    spans = [tuple(minutes * 60 / COMPRESSED for minutes in pair) for pair in MINUTES]
    with World(tmp_path, spare_disk=False) as world:
        found = lab.on_and_off(world, spans, SEED)
        assert failures({"on and off": found, "crashes": world.crashes}) == []
        assert found["cloud"]["sent"] == found["cloud"]["requests"] > 300  # once each
        assert sum(one["waiting_when_online"] for one in found["rounds"]) > 100
        assert len(found["rounds"]) == len(MINUTES)
