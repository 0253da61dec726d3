"""The Device Shadow service: requests on `$aws/things/..` are carried out and answered, shadows are kept on disk."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.local_cloud import shadow as rules
from agent.local_cloud.shadow import Document, Shadow, ShadowError
from agent.mqtt.connection import Connection
from agent.mqtt.packets import Message, Outgoing
from agent.paths import write_file
from agent.protocol.limits import IOT_CORE

log = logging.getLogger(__name__)

FILTERS: Final = ("$aws/things/+/shadow/+", "$aws/things/+/shadow/name/+/+")
OPERATIONS: Final = ("get", "update", "delete")


class Address(NamedTuple):
    """Which shadow: the classic one of a thing, or a named one."""

    thing: str
    name: str = ""

    @property
    def topic(self) -> str:
        return f"$aws/things/{self.thing}/shadow" + (f"/name/{self.name}" if self.name else "")


def parse_topic(topic: str) -> tuple[Address, str] | None:
    """The shadow and the operation that a topic asks for; None for every other topic."""
    match topic.split("/"):
        case ["$aws", "things", thing, "shadow", operation] if operation in OPERATIONS:
            return Address(thing), operation
        case ["$aws", "things", thing, "shadow", "name", name, operation] if name and operation in OPERATIONS:
            return Address(thing, name), operation
    return None


class ShadowStore:
    """One file a thing, with all its shadows by name; the classic one has the empty name."""

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, address: Address) -> Shadow:
        return self._read(address.thing).get(address.name, Shadow())

    def save(self, address: Address, shadow: Shadow) -> None:
        held = self._read(address.thing) | {address.name: shadow}
        write_file(self._file(address.thing), msgspec.json.encode(held))

    def _read(self, thing: str) -> dict[str, Shadow]:
        file = self._file(thing)
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Shadow]) if file.is_file() else {}

    def _file(self, thing: str) -> Path:
        return self._folder / f"{thing}.json"


class ShadowService:
    """Answers one request after the other, by the connection to the broker behind the gateway."""

    def __init__(self, store: ShadowStore, clock: Callable[[], float] = time.time) -> None:
        self._store: Final = store
        self._clock: Final = clock

    async def attach(self, connection: Connection) -> None:
        def handle(message: Message) -> None:
            parsed = parse_topic(message.topic)
            if parsed:
                for outgoing in self.carry_out(*parsed, message.payload)[1]:
                    connection.publish_soon(outgoing)
            message.acknowledge()

        await connection.listen(FILTERS, handle)

    def carry_out(self, address: Address, operation: str, payload: bytes) -> tuple[Document, list[Outgoing]]:
        """Do what is asked. Returns the answer (an error's has a `code`) and all messages to publish, in order."""
        now = int(self._clock())
        try:
            messages = self._change(address, operation, payload, now)
        except ShadowError as error:
            log.info("shadow %s of %s: %s rejected: %s", address.name or "(classic)", address.thing, operation, error)
            messages = {"rejected": error.document(now)}
        except Exception:
            log.exception("shadow of %s", address.thing)
            messages = {"rejected": ShadowError(500, "Internal service failure").document(now)}
        outgoing = [
            Outgoing(f"{address.topic}/{operation}/{last}", json.dumps(document, ensure_ascii=False).encode())
            for last, document in messages.items()
        ]
        return next(iter(messages.values())), outgoing

    def _change(self, address: Address, operation: str, payload: bytes, now: int) -> dict[str, Document]:
        if len(address.name.encode()) > IOT_CORE.shadow_name_bytes:
            raise ShadowError(400, "Invalid shadow name")
        old = self._store.load(address)
        if operation == "update":
            change = rules.update(old, payload, now)
        else:
            carry_out = rules.get if operation == "get" else rules.delete
            change = carry_out(old, payload, address.name or address.thing, now)
        if change.shadow is not old:
            self._store.save(address, change.shadow)
            log.info("shadow %s of %s: %s", address.name or "(classic)", address.thing, operation)
        return change.messages
