"""The AsyncAPI 3 document: the agent's topics, what it takes and sends there, and the MQTT properties of each message.

Topics come from `AgentTopics`, payloads are references to docs/schemas/. Written by scripts/docs.py.
"""

from typing import Any, Final

import yaml

from agent import __version__
from agent.config import LocalBroker, Topics
from agent.handlers import GZIP_PROPERTY
from agent.mqtt.options import MAX_PACKET_BYTES
from agent.protocol.topics import AgentTopics

BINDING: Final = {"bindingVersion": "0.2.0"}
DIALECT: Final = "application/schema+json;version=draft-2020-12"
HEAD: Final = "# Written by scripts/docs from the code.\n"
INTRO: Final = """\
A search agent for arXiv. Every message goes at QoS 1. A request is answered at least once: it is acknowledged only when
its answer is at the broker. Correlation data is echoed. interfaces.md says the same in prose."""
REQUESTS: Final = ("search-request", "embedding-request", "corpus-update")
ANSWERS: Final = ("search-result", "batch-result", "embedding-result", "corpus-update-report", "error")
# Topics of `AgentTopics`: what it is for, and which messages go there.
CHANNELS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "shared_requests": ("Requests to every agent of the broker.", ("search-request",)),
    "own_requests": ("Requests to one agent.", ("search-request",)),
    "results": (
        "Answers to requests that name no topic of their own, and errors about a topic that was refused.",
        ("search-result", "batch-result", "error"),
    ),
    "embeddings": ("Texts whose vectors are wanted.", ("embedding-request",)),
    "embeddings_response": ("Vectors for requests that name no topic of their own.", ("embedding-result",)),
    "corpus_updates": ("Papers to add and to remove, carried out in order.", ("corpus-update",)),
    "status": ("How each agent is.", ("status",)),
    "own_status": ("How one agent is; retained. The last will says `offline` here.", ("status",)),
}
# What the agent does: the topic, the direction, in words, and the answers where there are any.
OPERATIONS: Final[dict[str, tuple[str, str, str, tuple[str, ...]]]] = {
    "search": ("shared_requests", "receive", "Answer one question or several.", ANSWERS[:2]),
    "searchHere": ("own_requests", "receive", "Answer what this agent alone is asked.", ANSWERS[:2]),
    "embed": ("embeddings", "receive", "Compute the vectors of texts.", ("embedding-result",)),
    "updateCorpus": (
        "corpus_updates",
        "receive",
        "Change the corpus; a report goes back only to who names a topic for it.",
        ("corpus-update-report",),
    ),
    "publishResults": ("results", "send", "Answer who named no topic.", ()),
    "publishEmbeddings": ("embeddings_response", "send", "Send vectors to who named no topic.", ()),
    "reportStatus": ("status", "send", "After each connect, at every heartbeat, and at the end.", ()),
    "reportOwnStatus": ("own_status", "send", "The same, retained.", ()),
}
RESPONSES: Final = "responses"


def document() -> str:
    topics = AgentTopics.of(Topics(), "{thing_name}")
    content = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "ArXplorer Edge",
            "version": __version__,
            "description": INTRO.replace("\n", " "),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": _server(LocalBroker())},
        "channels": {name: _channel(getattr(topics, name), *rest) for name, rest in CHANNELS.items()}
        | {RESPONSES: _responses(topics)},
        "operations": {name: _operation(*rest) for name, rest in OPERATIONS.items()},
        "components": {
            "messages": {_camel(name): _message(name, topics) for name in (*REQUESTS, *ANSWERS, "status")},
            "correlationIds": {
                "correlationData": {
                    "description": "Any bytes; the answer carries the same.",
                    "location": "$message.header#/correlationData",
                }
            },
        },
    }
    return HEAD + yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


class _Plain(yaml.SafeDumper):
    """What is meant twice is written twice."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


def _server(broker: LocalBroker) -> dict[str, Any]:
    return {
        "host": f"{broker.host}:{broker.port}",
        "protocol": "mqtt",
        "protocolVersion": "5.0",
        "description": "The local broker. Clients of MQTT 3.1.1 name their answer topic in the field `reply_to`.",
        "bindings": {"mqtt": {"keepAlive": broker.keep_alive, "maximumPacketSize": MAX_PACKET_BYTES, **BINDING}},
    }


def _channel(address: str, description: str, messages: tuple[str, ...]) -> dict[str, Any]:
    channel: dict[str, Any] = {"address": address, "description": description, "messages": _messages(messages)}
    if "{thing_name}" in address:
        channel["parameters"] = {"thing_name": {"description": "The agent's name, `aws_iot.thing_name`."}}
    return channel


def _responses(topics: AgentTopics) -> dict[str, Any]:
    return {
        "address": None,
        "description": f"The topic that a request names for its answer, below `{topics.response_prefix}`.",
        "messages": _messages(ANSWERS),
    }


def _messages(names: tuple[str, ...]) -> dict[str, Any]:
    return {_camel(name): {"$ref": f"#/components/messages/{_camel(name)}"} for name in names}


def _operation(channel: str, action: str, summary: str, answers: tuple[str, ...]) -> dict[str, Any]:
    binding = {"qos": 1, "retain": channel == "own_status", **BINDING}
    operation = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "bindings": {"mqtt": binding},
    }
    if answers:
        operation["reply"] = {
            "address": {"location": "$message.header#/responseTopic"},
            "channel": {"$ref": f"#/channels/{RESPONSES}"},
            "messages": [{"$ref": f"#/channels/{RESPONSES}/messages/{_camel(name)}"} for name in (*answers, "error")],
        }
    return operation


def _message(name: str, topics: AgentTopics) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": name,
        "contentType": "application/json",
        "payload": {"schemaFormat": DIALECT, "schema": {"$ref": f"schemas/{name}.json"}},
    }
    properties: dict[str, Any] = {}
    binding: dict[str, Any] = {"contentType": "application/json"}
    if name in REQUESTS:
        properties["responseTopic"] = {
            "type": "string",
            "description": f"MQTT 5 response topic, below `{topics.response_prefix}`, without wildcards.",
        }
        binding["responseTopic"] = properties["responseTopic"]
    if name in (*REQUESTS, *ANSWERS):
        properties["correlationData"] = {"type": "string", "description": "MQTT 5 correlation data: any bytes."}
        binding["correlationData"] = properties["correlationData"]
        message["correlationId"] = {"$ref": "#/components/correlationIds/correlationData"}
    if name in ("search-result", "batch-result", "embedding-result"):
        key, value = GZIP_PROPERTY
        properties["contentType"] = {
            "enum": ["application/json", "application/gzip"],
            "description": 'MQTT 5 content type; gzip only for requests with "accept_encoding": ["gzip"].',
        }
        properties[key] = {"const": value, "description": "User property of an answer that is compressed."}
        del binding["contentType"]
    if properties:
        message["headers"] = {"type": "object", "properties": properties}
    message["bindings"] = {"mqtt": {**binding, **BINDING}}
    return message


def _camel(name: str) -> str:
    first, *rest = name.split("-")
    return first + "".join(map(str.capitalize, rest))
