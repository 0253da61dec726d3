"""The account of every request by its id: asked, answered, answered again, answered wrongly, or still open. Pure."""

import json
from collections import Counter
from itertools import islice
from typing import Any, Final

from faults.questions import Question

NO_ANSWER: Final = frozenset({"overloaded", "expired", "not_ready", "internal"})
"""Errors that ask for the request to be sent again; every other error is a wrong answer to these questions."""
TIMES: Final = ("processing_time_ms", "timings_ms")
MAX_PATIENCE: Final = 8
"""So many times as long as at first is waited in the end before a request is sent again."""


class Request:
    """One request, from its first sending to its answer. Times are of one monotonic clock."""

    __slots__ = ("answers", "correlation", "first", "first_sent", "id", "question", "sent", "tries")

    def __init__(self, request_id: str, question: Question) -> None:
        self.id: Final = request_id
        self.correlation: Final = b"c-" + request_id.encode()
        self.question: Final = question
        self.first_sent = self.sent = 0.0
        self.tries = 0
        self.answers = 0
        self.first: int | None = None  # what the first answer said


class Account:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self.requests: Final[dict[bytes, Request]] = {}
        self.open: Final[dict[bytes, Request]] = {}
        self.errors: Final[Counter[str]] = Counter()
        self.wrong: Final[list[str]] = []
        """What was wrong, in words."""
        self.strangers = 0
        """Answers to nothing that was asked."""
        self.slowest_s = 0.0
        """From the first sending of a request to its first answer."""

    def ask(self, request_id: str, question: Question) -> None:
        request = Request(request_id, question)
        self.requests[request.correlation] = self.open[request.correlation] = request

    def due(self, now: float, resend_s: float, window: int) -> list[Request]:
        """Of the first `window` open ones those to be sent now, for the first time or again, ever more rarely.

        Whoever asks a busy agent again at an even pace makes it busier.
        """
        first = islice(self.open.values(), window)
        return [one for one in first if not one.tries or now - one.sent >= resend_s * min(MAX_PATIENCE, one.tries)]

    def sent(self, request: Request, now: float) -> None:
        request.sent = now
        request.first_sent = request.first_sent or now
        request.tries += 1

    def answered(self, correlation: bytes | None, payload: bytes, now: float) -> None:
        request = self.requests.get(correlation or b"")
        if request is None:
            self.strangers += 1
            return
        answer = _document(payload)
        code = (answer.get("error") or {}).get("code")
        if code in NO_ANSWER:
            self.errors[code] += 1
            return
        self._judge(request, answer)
        request.answers += 1
        if self.open.pop(request.correlation, None):
            self.slowest_s = max(self.slowest_s, now - request.first_sent)

    def _judge(self, request: Request, answer: dict[str, Any]) -> None:
        if answer.get("request_id") != request.id:
            self.wrong.append(f"{request.id}: the answer is to {answer.get('request_id')}")
        elif answer.get("results") != request.question.expected:
            self.wrong.append(f"{request.id}: {request.question.request}: {json.dumps(answer)[:300]}")
        else:
            said = _said(answer)
            request.first = said if request.first is None else request.first
            if said != request.first:
                self.wrong.append(f"{request.id}: a copy is not like the first answer: {json.dumps(answer)[:300]}")

    def summary(self) -> dict[str, Any]:
        """Counts of requests, except `sent` and `answers`, which count messages."""
        every = self.requests.values()
        return {
            "requests": len(every),
            "answered": sum(one.answers > 0 for one in every),
            "unanswered": len(self.open),
            "wrong": len(self.wrong),
            "answered_again": sum(one.answers > 1 for one in every),
            "sent": sum(one.tries for one in every),
            "answers": sum(one.answers for one in every),
            "errors": dict(self.errors),
            "strangers": self.strangers,
            "slowest_s": round(self.slowest_s, 1),
        }


def _said(answer: dict[str, Any]) -> int:
    """The same for copies of an answer: all of it but when it was made, and how long that took."""
    metadata = {key: value for key, value in answer.get("metadata", {}).items() if key not in TIMES}
    return hash(json.dumps({**answer, "timestamp": None, "metadata": metadata}, sort_keys=True))


def _document(payload: bytes) -> dict[str, Any]:
    try:
        found = json.loads(payload)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
