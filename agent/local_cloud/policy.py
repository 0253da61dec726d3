"""AWS IoT policy documents: read, and asked whether a connection may do something. Pure.

As in AWS: a Deny beats every Allow, and what nothing allows is denied. `*` and `?` are wildcards in actions and
resources; MQTT's `+` and `#` are plain characters there. A variable is filled in where the document has Version
2012-10-17 and is never read as a wildcard itself; a statement with a variable that has no value does not apply. Region
and account of a resource are not compared: there is only one of each here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from agent.errors import AgentError
from agent.protocol.limits import IOT_CORE, Limits

ResourceType = Literal["client", "topic", "topicfilter"]
Context = Mapping[str, str | Sequence[str]]
"""Values of the policy variables, without `${}`; a sequence for a key that has many values."""

CLIENT_ID: Final = "iot:ClientId"
SOURCE_IP: Final = "aws:SourceIp"

_VERSION_WITH_VARIABLES: Final = "2012-10-17"
_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
_LITERALS: Final = {"*": "*", "?": "?", "$": "$"}
_ARN: Final = re.compile(r"arn:[^:]*:iot:[^:]*:[^:]*:(.*)", re.DOTALL)
_STATEMENT_KEYS: Final = {"Sid", "Effect", "Action", "Resource", "Condition"}


class PolicyError(AgentError):
    """A policy document cannot be used; the message names the place."""


class Condition(NamedTuple):
    """One test: `quantifier` is "", "ForAllValues" or "ForAnyValue"."""

    quantifier: str
    operator: str
    key: str
    values: tuple[str, ...]


class Statement(NamedTuple):
    allow: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]
    variables: bool


class Policy:
    """The statements of one or more documents, as they count together."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements: Final = tuple(statements)

    def allows(self, action: str, kind: ResourceType, name: str, context: Context) -> bool:
        """Whether `action`, such as `iot:Publish`, is allowed on `name`, such as a topic."""
        applying = [one for one in self.statements if _applies(one, action, f"{kind}/{name}", context)]
        return any(one.allow for one in applying) and all(one.allow for one in applying)


def parse_policy(text: str, limits: Limits = IOT_CORE) -> Policy:
    """Read a policy document. Raises PolicyError that names what is wrong with it."""
    if len("".join(text.split())) > limits.policy_characters:
        raise PolicyError(f"longer than the {limits.policy_characters} characters that AWS takes")
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise PolicyError(f"not valid JSON: {error}") from error
    if not isinstance(document, dict) or "Statement" not in document:
        raise PolicyError("Statement: missing")
    version = document.get("Version", "2008-10-17")
    if version not in ("2008-10-17", _VERSION_WITH_VARIABLES):
        raise PolicyError(f"Version: {version!r}; expected {_VERSION_WITH_VARIABLES!r}")
    statements = document["Statement"]
    listed = statements if isinstance(statements, list) else [statements]
    return Policy(
        [
            _statement(one, f"Statement[{number}]", variables=version == _VERSION_WITH_VARIABLES)
            for number, one in enumerate(listed)
        ]
    )


# -- reading ------------------------------------------------------------------------------------------------------


def _statement(given: Any, place: str, *, variables: bool) -> Statement:
    if not isinstance(given, dict):
        raise PolicyError(f"{place}: expected an object")
    unknown = set(given) - _STATEMENT_KEYS
    if unknown:
        raise PolicyError(f"{place}.{min(unknown)}: not supported")
    if given.get("Effect") not in ("Allow", "Deny"):
        raise PolicyError(f"{place}.Effect: expected 'Allow' or 'Deny'")
    resources = _strings(given.get("Resource"), f"{place}.Resource")
    for resource in resources:
        if resource != "*" and not _ARN.fullmatch(resource):
            raise PolicyError(f"{place}.Resource: {resource!r} is no ARN of AWS IoT")
    return Statement(
        allow=given["Effect"] == "Allow",
        actions=_strings(given.get("Action"), f"{place}.Action"),
        resources=tuple(_ARN.sub(r"\1", resource) for resource in resources),
        conditions=tuple(_conditions(given.get("Condition", {}), f"{place}.Condition")),
        variables=variables,
    )


def _conditions(given: Any, place: str) -> list[Condition]:
    if not isinstance(given, dict):
        raise PolicyError(f"{place}: expected an object")
    found = []
    for name, tests in given.items():
        quantifier, _, operator = name.rpartition(":")
        if operator not in _OPERATORS or quantifier not in ("", "ForAllValues", "ForAnyValue"):
            raise PolicyError(f"{place}.{name}: not supported; expected one of {', '.join(_OPERATORS)}")
        if not isinstance(tests, dict):
            raise PolicyError(f"{place}.{name}: expected an object")
        found += [
            Condition(quantifier, operator, key, _strings(values, f"{place}.{name}.{key}"))
            for key, values in tests.items()
        ]
    return found


def _strings(given: Any, place: str) -> tuple[str, ...]:
    listed = given if isinstance(given, list) else [given]
    texts = tuple(str(one).lower() if isinstance(one, bool) else one for one in listed)
    if not texts or not all(isinstance(one, str) for one in texts):
        raise PolicyError(f"{place}: expected a text or a list of texts")
    return texts


# -- asking -------------------------------------------------------------------------------------------------------


def _applies(statement: Statement, action: str, resource: str, context: Context) -> bool:
    filled = context if statement.variables else None
    return (
        any(_like(pattern.lower(), action.lower(), None) for pattern in statement.actions)
        and any(_like(pattern, resource, filled) for pattern in statement.resources)
        and all(_holds(condition, context, filled) for condition in statement.conditions)
    )


def _like(pattern: str, text: str, variables: Context | None) -> bool:
    """Whether `text` fits a pattern with wildcards, once its variables are filled in."""
    regular, end = "", 0
    for match in _VARIABLE.finditer(pattern) if variables is not None else ():
        value = _value(match[1], variables or {})
        if value is None:
            return False
        regular += _wildcards(pattern[end : match.start()]) + re.escape(value)
        end = match.end()
    return re.fullmatch(regular + _wildcards(pattern[end:]), text, re.DOTALL) is not None


def _wildcards(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")


def _value(variable: str, context: Context) -> str | None:
    if variable in _LITERALS:
        return _LITERALS[variable]
    value = context.get(variable)
    return value if isinstance(value, str) else None


def _plain(expected: str, variables: Context | None) -> str | None:
    """A value without wildcards, its variables filled in; None where one has no value."""
    if variables is None:
        return expected
    values = {name: _value(name, variables) for name in _VARIABLE.findall(expected)}
    if None in values.values():
        return None
    return _VARIABLE.sub(lambda match: values[match[1]] or "", expected)


def _equals(expected: str, actual: str, variables: Context | None) -> bool:
    return _plain(expected, variables) == actual


def _equals_ignoring_case(expected: str, actual: str, variables: Context | None) -> bool:
    plain = _plain(expected, variables)
    return plain is not None and plain.lower() == actual.lower()


_OPERATORS: Final = {
    "StringEquals": (_equals, True),
    "StringNotEquals": (_equals, False),
    "StringEqualsIgnoreCase": (_equals_ignoring_case, True),
    "StringNotEqualsIgnoreCase": (_equals_ignoring_case, False),
    "StringLike": (_like, True),
    "StringNotLike": (_like, False),
    "Bool": (_equals_ignoring_case, True),
}
"""How a value compares with one expected value, and whether it must (True) or must not (False) do so with any."""


def _holds(condition: Condition, context: Context, variables: Context | None) -> bool:
    compare, wanted = _OPERATORS[condition.operator]
    actual = context.get(condition.key)

    def fits(value: str) -> bool:
        return any(compare(expected, value, variables) for expected in condition.values) is wanted

    if condition.quantifier:
        values = [actual] if isinstance(actual, str) else list(actual or ())
        return all(map(fits, values)) if condition.quantifier == "ForAllValues" else any(map(fits, values))
    if actual is None:
        return not wanted
    values = [actual] if isinstance(actual, str) else list(actual)
    return any(map(fits, values)) if wanted else all(map(fits, values))
