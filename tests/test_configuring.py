"""Settings put into effect: all owners or none, proved by a probe, and there again after a restart."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import SearchConfig
from agent.configuring import Configurator
from agent.domain import SearchRequest
from agent.errors import AgentError, SettingsError
from agent.search import SearchAPI
from agent.search.engine import SearchEngine
from agent.settings import Outcome, SettingError, Settings
from agent.store.accepted import Accepted, AcceptedSettings
from agent.store.agent_db import AgentDatabase

BASE = Settings(search=SearchConfig(max_results=7))
FIVE, SIX = ({"search": {"max_results": number}} for number in (5, 6))


class Part:
    """A part of the agent that settings are put into, and that may refuse them."""

    def __init__(self) -> None:
        self.settings = BASE
        self.asked = 0
        self.refuses: list[int] = []
        self.error: Exception = AgentError("cannot do that")

    def configure(self, settings: Settings) -> None:
        self.asked += 1
        if settings.search.max_results in self.refuses:
            raise self.error
        self.settings = settings


class Agent:
    """Two parts, and a configurator that is made anew by `restart`."""

    def __init__(self, folder: Path, base: Settings = BASE) -> None:
        self.accepted = AcceptedSettings(AgentDatabase(folder / "agent.db"))
        self.base = base
        self.dead_with: list[int] = []
        self.restart()

    def restart(self) -> "Agent":
        self.parts = [Part(), Part()]
        owners = [part.configure for part in self.parts]
        self.configurator = Configurator(self.base, self.accepted, owners, self._probe)
        return self

    def _probe(self) -> None:
        if self.parts[1].settings.search.max_results in self.dead_with:
            raise AgentError("no answer any more")

    def apply(self, document: Any, version: int = 1) -> Outcome:
        return self.configurator.apply(document, version)

    @property
    def in_effect(self) -> int:
        """The number that every part has, and the configurator says."""
        (found,) = {one.settings.search.max_results for one in [*self.parts, self.configurator]}
        return found

    @property
    def asked(self) -> int:
        return sum(part.asked for part in self.parts)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def test_a_good_document_is_in_effect_everywhere_and_after_a_restart_without_a_network(agent: Agent) -> None:
    outcome = agent.apply(FIVE, 3)
    assert outcome == Outcome("applied", 3, outcome.settings)
    assert agent.in_effect == outcome.settings.search.max_results == 5
    assert agent.restart().configurator.start().search.max_results == agent.in_effect == 5
    assert agent.apply(FIVE, 9) == outcome, "the document of version 3 is the one in effect"


def test_what_a_document_no_longer_names_is_as_in_the_configuration_again(agent: Agent) -> None:
    agent.apply(FIVE)
    agent.apply({}, 2)
    assert agent.in_effect == 7
    agent.restart().configurator.start()
    assert agent.in_effect == 7


def test_the_accepted_settings_stand_on_top_of_a_configuration_that_was_edited(agent: Agent) -> None:
    agent.apply({"search": {"candidates": 300}})
    agent.base = Settings(search=SearchConfig(max_results=9))
    assert agent.restart().configurator.start().search == SearchConfig(max_results=9, candidates=300)


@pytest.mark.parametrize("document", [{"search": {"max_results": 0}}, 5, {"search": [], "limits": FIVE}])
def test_a_bad_document_touches_nothing(agent: Agent, document: Any) -> None:
    agent.apply(FIVE)
    asked = agent.asked
    outcome = agent.apply(document, 2)
    assert (outcome.status, outcome.version, outcome.settings) == ("rejected", 2, agent.configurator.settings)
    assert outcome.errors
    assert (agent.in_effect, agent.asked, agent.accepted.load()) == (5, asked, Accepted(FIVE, 1))
    assert agent.apply(document, 3) == outcome, "and is not another one a version later"


def test_an_unchanged_document_touches_nothing(agent: Agent) -> None:
    agent.apply(FIVE)
    asked, written = agent.asked, agent.accepted.path.stat().st_mtime_ns
    assert agent.apply({"search": {"max_results": 5}}, 2).version == 1
    assert (agent.asked, agent.accepted.path.stat().st_mtime_ns) == (asked, written)
    assert agent.apply({"search": {"max_results": True}}, 3).status == "rejected", "true is not 1"


def test_a_document_of_the_same_effect_is_kept_and_no_part_is_asked(agent: Agent) -> None:
    agent.apply(FIVE)
    asked = agent.asked
    outcome = agent.apply(FIVE | {"later": 1}, 2)
    assert (outcome.status, outcome.version, outcome.ignored) == ("applied", 2, ("settings.later",))
    assert (agent.asked, agent.accepted.load().version) == (asked, 2)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("error", [AgentError("cannot do that"), ZeroDivisionError("cannot do that")])
def test_a_part_that_refuses_leaves_every_part_as_it_was(agent: Agent, part: int, error: Exception) -> None:
    agent.apply(FIVE)
    agent.parts[part].refuses, agent.parts[part].error = [6], error
    outcome = agent.apply(SIX, 2)
    assert (outcome.status, outcome.settings.search.max_results) == ("rejected", 5)
    assert [(one.path, "cannot do that" in one.reason) for one in outcome.errors] == [("settings", True)]
    assert (agent.in_effect, agent.accepted.load()) == (5, Accepted(FIVE, 1))
    agent.restart().configurator.start()
    assert agent.in_effect == 5


def test_settings_with_which_the_probe_fails_are_taken_back_and_not_tried_again_and_again(agent: Agent) -> None:
    agent.apply(FIVE)
    agent.dead_with = [6]
    outcome = agent.apply(SIX, 2)
    assert outcome.errors == (SettingError("settings", None, "no answer any more"),)
    assert (agent.in_effect, agent.accepted.load()) == (5, Accepted(FIVE, 1))
    asked = agent.asked
    assert agent.apply(SIX, 3) == outcome
    assert agent.asked == asked
    back = agent.apply(FIVE, 4)
    assert (back.status, back.version) == ("applied", 4), "what is applied now is newer than what was rejected"


def test_what_cannot_be_kept_is_rejected_until_it_can(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.apply(FIVE)

    def refuse(*_: Any) -> None:
        raise SettingsError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(agent.accepted, "save", refuse)
        outcome = agent.apply(SIX, 2)
        assert outcome.errors == (SettingError("settings", None, "the disk is full"),)
        assert agent.in_effect == 5
    assert agent.apply(SIX, 3).status == "applied"
    assert agent.in_effect == 6


def test_a_document_beyond_what_can_be_written_is_rejected(agent: Agent) -> None:
    assert agent.apply({"later": 10**5000}).status == "rejected"
    assert agent.apply(None).status == "applied"


def test_accepted_settings_that_do_not_hold_any_more_stop_no_start(agent: Agent) -> None:
    agent.accepted.save({"search": {"max_results": 100_000}}, 3)
    assert agent.configurator.start() == BASE
    agent.accepted.save(FIVE, 3)
    agent.restart().parts[1].refuses = [5]
    assert agent.configurator.start() == BASE
    assert agent.in_effect == 7
    agent.parts[1].refuses = []
    assert agent.apply(FIVE, 4).status == "applied", "it is tried anew when the shadow says so"
    assert agent.in_effect == 5


def test_a_shadow_that_counts_anew_is_not_answered_with_a_version_to_come(agent: Agent) -> None:
    agent.apply(FIVE, 8)
    assert agent.apply(FIVE, 1).version == 1


def test_a_real_search_is_asked_with_the_new_settings(tmp_path: Path, sample_api: SearchAPI) -> None:
    """A device without a model cannot do what this document asks for, and says so."""
    engine = SearchEngine(sample_api.engine.index, None, BASE.search)

    def probe() -> None:
        engine.search(SearchRequest(query="quantum gravity"))

    owners = [lambda settings: engine.configure(settings.search)]
    configurator = Configurator(BASE, AcceptedSettings(AgentDatabase(tmp_path / "agent.db")), owners, probe)
    outcome = configurator.apply({"search": {"default_mode": "semantic", "max_results": 3}}, 1)
    assert (outcome.status, outcome.errors[0].path) == ("rejected", "settings")
    assert "needs a model" in outcome.errors[0].reason
    assert engine.config == BASE.search
    assert configurator.apply({"search": {"default_mode": "keyword", "max_results": 3}}, 2).status == "applied"
    assert len(engine.search(SearchRequest(query="quantum gravity")).hits) == 3


documents = st.sampled_from(
    [None, {}, FIVE, SIX, {"search": {"max_results": 8}}, {"search": {"max_results": 0}}, 5, FIVE | {"x": 1}]
)


@given(st.lists(st.tuples(documents, st.booleans()), max_size=8))
def test_whatever_comes_the_last_good_document_is_in_effect(tmp_path_factory, sequence) -> None:
    agent = Agent(tmp_path_factory.mktemp("agent"))
    agent.dead_with = [8]
    expected = 7
    for version, (document, restarts) in enumerate(sequence, 1):
        outcome = agent.apply(document, version)
        merged = BASE.merged(document)
        good = not merged.errors and merged.settings.search.max_results != 8
        assert outcome.status == ("applied" if good else "rejected")
        expected = merged.settings.search.max_results if good else expected
        if restarts:
            agent.restart().configurator.start()
        assert agent.in_effect == agent.configurator.settings.search.max_results == expected
