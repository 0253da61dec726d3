"""Targets of the shadow: wishes that take time, with a progress of their own. Pure.

This version carries none of them out. It says so, and how it is done by hand.
"""

from typing import Any, Final

NO_PACKS: Final = "taking packs is not part of this version yet"
NO_SWITCH: Final = (
    "this version cannot switch models by shadow yet; run `arxplorer-agent model install`, set model.name, restart"
)


def reported_targets(wished: Any, *, model: str | None, corpus_version: str) -> dict[str, Any]:
    """What to report of each target that is wished for; `wished` may be any JSON value."""
    if not isinstance(wished, dict):
        return {}
    found: dict[str, Any] = {}
    if wished.get("corpus") is not None:
        found["corpus"] = {"version": corpus_version, "state": "failed", "error": NO_PACKS}
    if wished.get("model") is not None:
        name = wished["model"].get("name") if isinstance(wished["model"], dict) else None
        state = {"state": "current"} if model is not None and name == model else {"state": "failed", "error": NO_SWITCH}
        if not isinstance(name, str):
            state = {"state": "failed", "error": "targets.model must be an object with a name"}
        found["model"] = {"name": model or "none"} | state
    return found
