"""Settings from the shadow put into effect: all owners or none, proved by a probe, kept, and only then reported.

A document is kept last, when it is proven: whatever ends the agent in between, the next start has settings that worked.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from agent.errors import AgentError, SettingsError
from agent.settings import ROOT, Merged, Outcome, SettingError, Settings
from agent.store.accepted import AcceptedSettings

log = logging.getLogger(__name__)

Owner = Callable[[Settings], None]
"""Puts settings into effect where it owns them; may be called again with the ones before. Raises AgentError."""

Probe = Callable[[], None]
"""Shows that the agent still does what it is there for. Raises AgentError."""


class Configurator:
    """What settings are in effect, and how they change. Safe to call from several threads.

    It is made with the configuration's own settings in effect; `start` puts the last accepted ones on top.
    """

    def __init__(
        self, base: Settings, accepted: AcceptedSettings, owners: Sequence[Owner], probe: Probe = lambda: None
    ) -> None:
        self._base: Final = base
        self._accepted: Final = accepted
        self._owners: Final = tuple(owners)
        self._probe: Final = probe
        self._guard: Final = threading.Lock()
        self._settings = base
        self._text: str | None = _canonical(None)  # the document in effect
        self._outcome = Outcome("applied", 0, base)  # and what became of it
        self._refused: tuple[str | None, Outcome] | None = None  # the same of a document refused since

    @property
    def settings(self) -> Settings:
        """What is in effect."""
        return self._settings

    def start(self) -> Settings:
        """Put the last accepted settings into effect, with no network. Returns what is in effect. Never raises."""
        with self._guard:
            held = self._accepted.load()
            if held is None:
                return self._settings
            merged = self._base.merged(held.document)
            failure = merged.errors[0].reason if merged.errors else self._put_into_effect(merged.settings)
            if failure:
                # config.yaml's own hold, and what the shadow still wishes is tried anew.
                log.error("the settings last accepted cannot be put into effect again: %s", failure)
                self._text = None
            else:
                self._text = _canonical(held.document)
                self._outcome = Outcome("applied", held.version, self._settings, (), merged.ignored)
            return self._settings

    def apply(self, document: Any, version: int) -> Outcome:
        """Take a document, any JSON value, of the shadow of that version: all of it or nothing. Never raises.

        A document that is in effect already, or that was refused just before, touches nothing.
        """
        with self._guard:
            text = _canonical(document)
            known = self._refused or (self._text, self._outcome)
            if text is not None and text == known[0]:
                # A lower version is of a shadow that was made anew, with the same wishes.
                return known[1]._replace(version=min(known[1].version, version))
            merged = self._base.merged(document)
            if merged.errors:
                outcome = Outcome("rejected", version, self._settings, merged.errors, merged.ignored)
                self._refused = (text, outcome)
                return outcome
            return self._take(document, version, merged)

    # -- inside, under the guard --------------------------------------------------------------------------------------

    def _take(self, document: Any, version: int, merged: Merged) -> Outcome:
        before, settings, text = self._settings, merged.settings, _canonical(document)
        failure = None if settings == before else self._put_into_effect(settings, self._probe)
        refused = Outcome("rejected", version, before, (SettingError(ROOT, None, failure or ""),), merged.ignored)
        if failure:
            log.warning("settings of shadow version %d rejected: %s", version, failure)
            self._refused = (text, refused)
            return refused
        try:
            self._accepted.save({} if document is None else document, version)
        except SettingsError as error:
            # What is not kept is not accepted: the next start would not have it. A full disk is not for ever, so this
            # is not remembered, and the document may come again.
            log.error("settings of shadow version %d rejected: %s", version, error.message)  # noqa: TRY400
            if settings != before:
                self._restore(before)
            return refused._replace(errors=(SettingError(ROOT, None, error.message),))
        if settings != before:
            log.info("settings of shadow version %d are in effect", version)
        self._text, self._refused = text, None
        self._outcome = Outcome("applied", version, settings, (), merged.ignored)
        return self._outcome

    def _put_into_effect(self, settings: Settings, probe: Probe = lambda: None) -> str | None:
        """At every owner, or at none. Returns what was against it."""
        before = self._settings
        try:
            for owner in self._owners:
                owner(settings)
            probe()
        except Exception as error:  # whatever it was, the settings before must come back
            if not isinstance(error, AgentError):
                log.exception("putting settings into effect")
            self._restore(before)
            return error.message if isinstance(error, AgentError) else f"{type(error).__name__}: {error}"
        self._settings = settings
        return None

    def _restore(self, settings: Settings) -> None:
        for owner in self._owners:
            try:
                owner(settings)
            except Exception:
                log.exception("putting the settings before back into effect")
        self._settings = settings


def _canonical(document: Any) -> str | None:
    """The same text for the same wishes, and another for others: 1 is not true here. None: Python cannot write it."""
    try:
        return json.dumps({} if document is None else document, sort_keys=True)
    except (ValueError, RecursionError):  # more digits or more levels
        return None
