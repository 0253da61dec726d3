"""Device Shadow documents, as the service keeps them: what a request makes of a shadow, and what is said of it. Pure.

`get`, `update` and `delete` take a `Shadow` and a request's payload, and give back the shadow as it is then with the
messages to publish: `accepted`, and after an update `delta` and `documents`. A request that is refused raises
ShadowError, whose code and message are the service's own.
"""

from typing import Any, Final, NamedTuple

import msgspec

from agent.protocol.limits import IOT_CORE, Limits

SECTIONS: Final = ("desired", "reported")
Document = dict[str, Any]


class ShadowError(Exception):
    """A request is refused: what goes out on `/rejected`."""

    def __init__(self, code: int, message: str, client_token: str | None = None) -> None:
        super().__init__(message)
        self.code: Final = code
        self.message: Final = message
        self.client_token: Final = client_token

    def document(self, now: int) -> Document:
        return _answer({"code": self.code, "message": self.message, "timestamp": now}, self.client_token)


class Shadow(msgspec.Struct, frozen=True):
    """One shadow. A deleted one keeps its version, from which the next one counts on."""

    version: int = 0
    state: Document | None = None
    metadata: Document = {}
    timestamp: int = 0

    @property
    def delta(self) -> Document:
        """What is desired and not reported so, with the path to it."""
        state = self.state or {}
        return difference(state.get("desired", {}), state.get("reported", {}))


class Change(NamedTuple):
    """What a request made: the shadow as it is now, and the messages by the last part of their topic, in order."""

    shadow: Shadow
    messages: dict[str, Document]


def get(shadow: Shadow, payload: bytes, name: str, now: int, limits: Limits = IOT_CORE) -> Change:
    """The whole document. `name` is the shadow's, or the thing's for its classic shadow."""
    token = _client_token(_request(payload, empty=True), limits)
    if shadow.state is None:
        raise ShadowError(404, f"No shadow exists with name: '{name}'", token)
    document = full_document(shadow)
    document["timestamp"] = now
    return Change(shadow, {"accepted": _answer(document, token)})


def full_document(shadow: Shadow) -> Document:
    """As `get` gives it, the differences included."""
    delta = shadow.delta
    state = (shadow.state or {}) | ({"delta": delta} if delta else {})
    return {"state": state, "metadata": shadow.metadata, "version": shadow.version, "timestamp": shadow.timestamp}


def delete(shadow: Shadow, payload: bytes, name: str, now: int, limits: Limits = IOT_CORE) -> Change:
    token = _client_token(_request(payload, empty=True), limits)
    if shadow.state is None:
        raise ShadowError(404, f"No shadow exists with name: '{name}'", token)
    accepted = _answer({"version": shadow.version, "timestamp": now}, token)
    # The service counts a delete too: AWS's own shadow manager for Greengrass does its sums by that.
    return Change(Shadow(version=shadow.version + 1, timestamp=now), {"accepted": accepted})


def update(shadow: Shadow, payload: bytes, now: int, limits: Limits = IOT_CORE) -> Change:
    """Merge the request's sections into the shadow; all of it or nothing."""
    request = _request(payload)
    token = _client_token(request, limits)
    changes = _changes(request, token, limits)
    version = request.get("version")
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 0):
        raise ShadowError(400, "Invalid version", token)
    if version is not None and version != shadow.version:
        raise ShadowError(409, "Version conflict", token)
    state, metadata = dict(shadow.state or {}), dict(shadow.metadata)
    for section, change in changes.items():
        merged = None if change is None else merge(state.get(section, {}), change)
        if merged:
            state[section] = merged
            metadata[section] = _stamped(state[section], change, metadata.get(section, {}), now)
        else:
            state.pop(section, None)
            metadata.pop(section, None)
    if len(msgspec.json.encode(state)) > limits.shadow_bytes:
        raise ShadowError(413, "The payload exceeds the maximum size allowed", token)
    new = Shadow(version=shadow.version + 1, state=state, metadata=metadata, timestamp=now)
    return Change(new, _told(shadow, new, request["state"], token, now))


# -- what is said after an update ---------------------------------------------------------------------------------


def _told(old: Shadow, new: Shadow, asked: Document | None, token: str | None, now: int) -> dict[str, Document]:
    stamps: Document = {"timestamp": now}  # of a state that is null there is nothing else to stamp
    if asked is not None:
        stamps = {section: _stamps(change, now) for section, change in asked.items() if change is not None}
    accepted = {"state": asked, "metadata": stamps, "version": new.version, "timestamp": now}
    messages = {"accepted": _answer(accepted, token)}
    delta = new.delta
    if delta:
        stamps = _picked(new.metadata.get("desired", {}), delta)
        differing = {"version": new.version, "timestamp": now, "state": delta, "metadata": stamps}
        messages["delta"] = _answer(differing, token)
    both = {"previous": _snapshot(old), "current": _snapshot(new), "timestamp": now}
    return messages | {"documents": _answer(both, token)}


def _snapshot(shadow: Shadow) -> Document:
    return {"state": shadow.state or {}, "metadata": shadow.metadata, "version": shadow.version}


def _answer(document: Document, token: str | None) -> Document:
    return document | ({"clientToken": token} if token is not None else {})


# -- reading a request --------------------------------------------------------------------------------------------


def _request(payload: bytes, *, empty: bool = False) -> Document:
    """The payload as an object; `get` and `delete` may come with none."""
    if empty and not payload:
        return {}
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise ShadowError(415, "Unsupported documented encoding; supported encoding is UTF-8") from error
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ShadowError(400, "Invalid JSON") from error
    if not isinstance(document, dict):
        raise ShadowError(400, "Invalid JSON")
    return document


def _client_token(request: Document, limits: Limits) -> str | None:
    token = request.get("clientToken")
    if token is not None and (not isinstance(token, str) or len(token.encode()) > limits.client_token_bytes):
        raise ShadowError(400, "Invalid clientToken")
    return token


def _changes(request: Document, token: str | None, limits: Limits) -> Document:
    if "state" not in request:
        raise ShadowError(400, "Missing required node: state", token)
    state = request["state"]
    if state is None:  # the one way to empty a shadow without deleting it
        return dict.fromkeys(SECTIONS)
    if not isinstance(state, dict):
        raise ShadowError(400, "State node must be an object", token)
    if not state.keys() <= set(SECTIONS):
        raise ShadowError(400, "State contains an invalid node", token)
    for section, change in state.items():
        if change is not None and not isinstance(change, dict):
            raise ShadowError(400, f"{section.capitalize()} node must be an object", token)
        if _depth(change or {}) > limits.shadow_levels:
            most = limits.shadow_levels + 1
            raise ShadowError(400, f"JSON contains too many levels of nesting; maximum is {most}", token)
        if _null_in_array(change):
            raise ShadowError(400, "State contains an invalid node", token)
    return state


def _depth(value: Any) -> int:
    """Levels of objects and arrays, the value's own included."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def _null_in_array(value: Any, *, inside: bool = False) -> bool:
    if isinstance(value, dict):
        return any(_null_in_array(one, inside=inside) for one in value.values())
    if isinstance(value, list):
        return any(_null_in_array(one, inside=True) for one in value)
    return inside and value is None


# -- rules --------------------------------------------------------------------------------------------------------


def merge(old: Document, change: Document) -> Document:
    """Objects are merged, null removes, everything else, arrays too, replaces."""
    merged = dict(old)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            held = merged.get(key)
            merged[key] = merge(held if isinstance(held, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def difference(desired: Document, reported: Document) -> Document:
    """Every desired field that differs from the reported one or has none, the path to it kept; arrays as a whole."""
    found: Document = {}
    for key, value in desired.items():
        other = reported.get(key)
        if isinstance(value, dict):
            inside = difference(value, other if isinstance(other, dict) else {})
            if inside:
                found[key] = inside
        elif key not in reported or not _same(value, other):
            found[key] = value
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, as it would be in Python, but 1 is 1.0."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def _stamps(value: Any, now: int) -> Any:
    """The time beside each value: of an object or an array, of each thing in it."""
    if isinstance(value, dict):
        return {key: _stamps(one, now) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_stamps(one, now) for one in value]
    return {"timestamp": now}


def _stamped(state: Document, change: Document, old: Document, now: int) -> Document:
    """The metadata of a merged section: fields that the change names are stamped anew, the others keep theirs."""
    stamped: Document = {}
    for key, value in state.items():
        if key not in change:
            stamped[key] = old[key]
        elif isinstance(value, dict):
            held = old.get(key)
            stamped[key] = _stamped(value, change[key], held if isinstance(held, dict) else {}, now)
        else:
            stamped[key] = _stamps(value, now)
    return stamped


def _picked(metadata: Document, delta: Document) -> Document:
    return {
        key: _picked(metadata[key], value) if isinstance(value, dict) else metadata[key] for key, value in delta.items()
    }
