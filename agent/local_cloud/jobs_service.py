"""The AWS IoT Jobs service: requests on `$aws/things/T/jobs/..` are carried out and answered, jobs are kept on disk."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from agent.local_cloud import jobs as rules
from agent.local_cloud.jobs import Change, Document, JobsError, Ledger
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Message, Outgoing
from agent.paths import write_file

log = logging.getLogger(__name__)

FILTERS: Final = ("$aws/things/+/jobs/+", "$aws/things/+/jobs/+/+")
LOOK_S: Final = 0.5
"""How often it is looked whether a job is past its time."""
OURS: Final = frozenset({"accepted", "rejected", "notify", "notify-next"})
"""The last parts of topics that the service itself publishes on."""
OPERATIONS: Final = ("create", "cancel", "delete", "get", "list")
"""What an operator asks for, by the control socket."""


class Asked(NamedTuple):
    """What a topic asks for: `get` or `start-next` of the thing, or `get` or `update` of one job."""

    thing: str
    operation: str
    job_id: str = ""

    @property
    def topic(self) -> str:
        return "/".join(["$aws/things", self.thing, "jobs", *([self.job_id] if self.job_id else []), self.operation])


def parse_topic(topic: str) -> Asked | None:
    """None for what the service says itself, and for every topic that is none of Jobs'."""
    match topic.split("/"):
        case ["$aws", "things", _, "jobs", *_, last] if last in OURS:
            return None
        case ["$aws", "things", thing, "jobs", operation]:
            return Asked(thing, operation)
        case ["$aws", "things", thing, "jobs", job_id, operation] if job_id:
            return Asked(thing, operation, job_id)
    return None


class JobsStore:
    """One file a thing. They are read once: nobody else writes them while the local cloud runs."""

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._held: Final = {
            file.stem: msgspec.json.decode(file.read_bytes(), type=Ledger) for file in folder.glob("*.json")
        }

    def load(self, thing: str) -> Ledger:
        return self._held.get(thing, Ledger())

    def save(self, thing: str, ledger: Ledger) -> None:
        write_file(self._folder / f"{thing}.json", msgspec.json.encode(ledger))
        self._held[thing] = ledger

    def things(self) -> list[str]:
        return list(self._held)


class JobsService:
    """Answers one request after the other, by the connection to the broker behind the gateway."""

    def __init__(self, store: JobsStore, clock: Callable[[], float] = time.time) -> None:
        self._store: Final = store
        self._clock: Final = clock

    async def attach(self, connection: Connection) -> None:
        def handle(message: Message) -> None:
            asked = parse_topic(message.topic)
            if asked:
                for outgoing in self.answer(asked, message.payload):
                    connection.publish_soon(outgoing)
            message.acknowledge()

        await connection.listen(FILTERS, handle)

    async def keep_time(self, connection: Connection) -> None:
        """End jobs that are past their time, until cancelled."""
        while True:
            for thing in self._store.things():
                for outgoing in self._timed_out(thing):
                    connection.publish_soon(outgoing)
            await asyncio.sleep(LOOK_S)

    def answer(self, asked: Asked, payload: bytes) -> list[Outgoing]:
        """Do what a device asks. Returns all messages to publish, in order."""
        now, token = self._clock(), None
        late = self._timed_out(asked.thing)
        before = self._store.load(asked.thing)
        try:
            request = rules.parse_request(payload)
            token = request.get("clientToken")
            change = self._asked(before, asked, request, now)
            self._keep(asked.thing, before, change.ledger)
            last, document, after = "accepted", change.answer | {"timestamp": int(now)}, change.ledger
        except JobsError as error:
            log.info("jobs of %s: %s rejected: %s", asked.thing, asked.topic, error)
            last, document, after = "rejected", error.document(now), before
        except Exception:
            log.exception("jobs of %s", asked.thing)
            internal = JobsError("InternalError", "Internal service failure")
            last, document, after = "rejected", internal.document(now), before
        document |= {"clientToken": token} if token is not None else {}
        return [*late, _message(f"{asked.topic}/{last}", document), *self._notices(asked.thing, before, after, now)]

    def operate(self, operation: str, thing: str, given: dict[str, Any]) -> tuple[Document, list[Outgoing]]:
        """Do what an operator asks. Returns the answer and all messages to publish, in order. Raises JobsError."""
        now, job_id = self._clock(), given.get("id", "")
        late = self._timed_out(thing)
        before = self._store.load(thing)
        match operation:
            case "create":
                change = rules.create(before, job_id, given["document"], given.get("timeout_minutes"), now)
            case "cancel":
                change = rules.cancel(before, job_id, now, force=bool(given.get("force")))
            case "delete":
                change = rules.delete(before, job_id, force=bool(given.get("force")))
            case "get":
                change = Change(before, before.find(job_id).shown(thing, now))
            case _:
                listed = [one.summary | {"status": one.status} for one in before.executions]
                change = Change(before, {"executions": listed})
        self._keep(thing, before, change.ledger)
        return change.answer, [*late, *self._notices(thing, before, change.ledger, now)]

    # -- inside ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _asked(ledger: Ledger, asked: Asked, request: Document, now: float) -> Change:
        match asked.operation, bool(asked.job_id):
            case "get", False:
                return rules.pending(ledger, request, asked.thing, now)
            case "start-next", False:
                return rules.start_next(ledger, request, asked.thing, now)
            case "get", True:
                return rules.describe(ledger, asked.job_id, request, asked.thing, now)
            case "update", True:
                return rules.update(ledger, asked.job_id, request, asked.thing, now)
        raise JobsError("InvalidTopic", f"no operation of Jobs: {asked.topic}")

    def _timed_out(self, thing: str) -> list[Outgoing]:
        now, before = self._clock(), self._store.load(thing)
        after = rules.timed_out(before, now)
        self._keep(thing, before, after)
        return self._notices(thing, before, after, now)

    def _keep(self, thing: str, before: Ledger, after: Ledger) -> None:
        if after is before:
            return
        self._store.save(thing, after)
        was = {one.number: one.status for one in before.executions}
        for one in after.executions:
            if was.get(one.number) != one.status:
                log.info("job %s of %s: %s", one.id, thing, one.status)

    @staticmethod
    def _notices(thing: str, before: Ledger, after: Ledger, now: float) -> list[Outgoing]:
        told = rules.notices(before, after, thing, now)
        return [_message(f"$aws/things/{thing}/jobs/{last}", document) for last, document in told.items()]


def _message(topic: str, document: Document) -> Outgoing:
    return Outgoing(topic, json.dumps(document, ensure_ascii=False).encode())
