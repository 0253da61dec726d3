"""Change a few values in the text of config.yaml and leave all else as it is, comments included. Pure."""

from typing import Any, Final

import yaml

from agent.errors import AgentError

_Edit = tuple[int, int, str]
"""Replace the characters from one index to another."""
_WIDTH: Final = 100_000  # nothing is folded


def edited(text: str, changes: dict[str, Any], name: str = "config.yaml") -> str:
    """Put `changes`, sections within sections, into a YAML text.

    Raises AgentError, with the lines to put in by hand, where the text is written in a way that this cannot follow
    (an alias in the place of a value, say).
    """
    before = yaml.safe_load(text)
    wanted = _merged(before or {}, changes)
    if before == wanted:
        return text
    root = yaml.compose(text, yaml.SafeLoader)
    if root is None:
        return _with_end(text) + _block(changes)
    try:
        result = _applied(text, _edits(root, changes) if isinstance(root, yaml.MappingNode) else [])
        if yaml.safe_load(result) == wanted:
            return result
    except yaml.YAMLError:
        pass
    raise AgentError(f"{name} is written in a way that cannot be changed safely", hint=f"put in:\n{_block(changes)}")


def _merged(old: Any, changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in changes.items():
        result[key] = _merged(result.get(key), value) if isinstance(value, dict) else value
    return result


def _edits(node: yaml.MappingNode, changes: dict[str, Any]) -> list[_Edit]:
    found = {key.value: value for key, value in node.value}
    if node.flow_style or not found:
        return _value_edits(node, _merged(_plain(node), changes), whole=True)
    edits = [edit for key, value in changes.items() if key in found for edit in _value_edits(found[key], value)]
    missing = {key: value for key, value in changes.items() if key not in found}
    if missing:
        # In front of the first key: where a section ends, among comments and empty lines, YAML does not say.
        first = node.value[0][0].start_mark
        indent = " " * first.column
        lines = _block(missing).splitlines()
        edits.append((first.index, first.index, "".join(f"{line}\n{indent}" for line in lines)))
    return edits


def _value_edits(node: yaml.Node, value: Any, *, whole: bool = False) -> list[_Edit]:
    if isinstance(value, dict) and isinstance(node, yaml.MappingNode) and not whole:
        return _edits(node, value)
    return [] if _plain(node) == value else [_replacement(node, value)]


def _replacement(node: yaml.Node, value: Any) -> _Edit:
    start, end = node.start_mark.index, node.end_mark.index
    written = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=_WIDTH).splitlines()[0]
    return start, end, written if end > start else f" {written}"  # an empty value ends right at the colon


def _plain(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def _applied(text: str, edits: list[_Edit]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _block(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, width=_WIDTH)


def _with_end(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
