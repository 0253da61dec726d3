"""Jobs of AWS IoT as this agent reads them, and the status details that it answers with. Pure.

A job's document is `{"operation": "corpus.update", ..}`; what else stands there belongs to the operation.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any, Final

from agent.errors import JobDocumentError
from agent.protocol.limits import IOT_CORE, Limits

Details = dict[str, str]
"""Status details: few, short, and texts all of them."""

OPERATION: Final = "operation"
_NOT_IN_A_NAME: Final = re.compile(r"[^a-zA-Z0-9:_-]")


def operation_of(document: Any, known: Collection[str]) -> str:
    """Which operation a job asks for. Raises JobDocumentError."""
    if not isinstance(document, dict):
        raise JobDocumentError("must be an object", field="document")
    name = document.get(OPERATION)
    if not isinstance(name, str):
        raise JobDocumentError("missing" if name is None else "must be a text", field=OPERATION)
    if name not in known:
        raise JobDocumentError(f"{name!r} is not known here; one of {', '.join(sorted(known))}", field=OPERATION)
    return name


def fitting(details: Mapping[str, Any], limits: Limits = IOT_CORE) -> Details:
    """The same as the service takes it: the first ten, names and values without what it does not allow, cut."""
    found: Details = {}
    for name, value in details.items():
        if len(found) == limits.status_details:
            break
        fit = _NOT_IN_A_NAME.sub("_", str(name))[: limits.status_detail_name_characters]
        text = "".join(" " if unicodedata.category(one).startswith("C") else one for one in str(value))
        text = text.strip()[: limits.status_detail_characters]
        if fit and text:
            found[fit] = text
    return found
