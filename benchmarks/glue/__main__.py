"""paho, the same model and one engine: requests in JSON, answers in JSON, nothing else.

No check of the request, no acknowledgement after the answer, no status, no reconnection of its own, no new papers.

    python -m benchmarks.glue ENGINE FOLDER MODEL PORT
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.peers.engine import Engine
from benchmarks.peers.registry import ENGINES

REQUESTS = "arxplorer/search/requests"


def serve(engine: Engine, port: int) -> None:
    def answer(client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        request = json.loads(message.payload)
        results = engine.ask(request["query"], request.get("filters", {}).get("max_results", 10))
        content = {"query": request["query"], "results": results, "count": len(results)}
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = message.properties.CorrelationData  # type: ignore[union-attr]
        topic = message.properties.ResponseTopic  # type: ignore[union-attr]
        client.publish(topic, json.dumps(content), qos=1, properties=properties)

    def without_delay(_: mqtt.Client, __: Any, connection: Any) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def subscribe(client: mqtt.Client, *_: Any) -> None:
        client.subscribe(REQUESTS, qos=1)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_socket_open = without_delay
    client.on_connect = subscribe
    client.on_message = answer
    client.connect("127.0.0.1", port)
    client.loop_forever()


def main() -> None:
    name, folder, model, port = sys.argv[1:]
    engine = ENGINES[name].engine(Path(folder), Path(model))
    engine.open()
    serve(engine, int(port))


if __name__ == "__main__":
    main()
