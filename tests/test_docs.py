"""The documents say what the code does."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.aws import AWSIoTMQTTClient, MQTTSearchBridge, MQTTSearchService
from agent.cli import cli
from agent.config import Topics
from agent.protocol.topics import AgentTopics
from agent.search import SearchAPI

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    names = [
        f"{group} {name}".strip()
        for group, command in [("", cli), *((name, found) for name, found in cli.commands.items())]
        for name in getattr(command, "commands", {})
        if not hasattr(cli.commands.get(name, None) if not group else None, "commands")
    ]
    assert [name for name in names if f"`{name}" not in text] == []


def test_the_readme_shows_only_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = set(re.findall(r"arxplorer-agent (?:--\S+ \S+ )*([a-z]+)", text))
    assert shown
    assert shown <= set(cli.commands)
    for script in re.findall(r"scripts/([a-z-]+)", text):
        assert (ROOT / "scripts" / script).exists(), script


@pytest.mark.parametrize("kind", [AWSIoTMQTTClient, SearchAPI, MQTTSearchBridge, MQTTSearchService])
def test_every_public_name_of_the_python_api_is_documented_with_its_parameters(kind: type) -> None:
    """A method is shown with all of its parameters, `name(a, b=..)`; properties by name."""
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    section = page.partition(f"\n## {kind.__name__}\n")[2].partition("\n## ")[0]
    for name, value in vars(kind).items():
        if not name.startswith("_"):
            shown = re.search(rf"`(?:await )?{name}(?:\((.*?)\))?`", section)
            assert shown, f"{kind.__name__}.{name}"
            if inspect.isfunction(value):
                named = [part.strip(" *").partition("=")[0] for part in (shown[1] or "").split(",")]
                assert [*filter(None, named)] == [*inspect.signature(value).parameters][1:], shown[0]


# -- asyncapi.yaml: the specification's own schema is on npm, not among our packages, so what it must be is said here --

ASYNCAPI = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text("utf-8"))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["$ref"]] if "$ref" in node else []
        node = list(node.values())
    for inner in node if isinstance(node, list) else []:
        yield from references(inner)


def resolved(reference: str) -> Any:
    file, _, pointer = reference.partition("#")
    node = yaml.safe_load((ROOT / "docs" / file).read_text("utf-8")) if file else ASYNCAPI
    for name in pointer.strip("/").split("/") if pointer else []:
        node = node[name]
    return node


def test_every_topic_of_the_agent_is_a_channel_of_the_asyncapi_document() -> None:
    topics = AgentTopics.of(Topics(), "{thing_name}")._asdict()
    prefix = topics.pop("response_prefix")
    channels = dict(ASYNCAPI["channels"])
    responses = channels.pop("responses")
    assert {name: channel["address"] for name, channel in channels.items()} == topics
    assert (responses["address"], f"`{prefix}`" in responses["description"]) == (None, True)
    for channel in channels.values():
        assert set(re.findall(r"\{(.*?)\}", channel["address"])) == set(channel.get("parameters", {}))
    used = {operation["channel"]["$ref"].rpartition("/")[2] for operation in ASYNCAPI["operations"].values()}
    assert used == set(channels)


def test_every_reference_of_the_asyncapi_document_leads_to_what_it_names() -> None:
    found = set(references(ASYNCAPI))
    assert all(resolved(reference) for reference in found)
    payloads = {message["payload"]["schema"]["$ref"] for message in ASYNCAPI["components"]["messages"].values()}
    assert payloads == {
        f"schemas/{file.name}" for file in ROOT.glob("docs/schemas/*") if file.stem not in {"config", "shadow"}
    }
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in ("send", "receive")
        for message in operation.get("reply", {}).get("messages", []):
            assert message["$ref"].startswith(operation["reply"]["channel"]["$ref"])
    for channel in ASYNCAPI["channels"].values():
        assert all(message["$ref"].startswith("#/components/messages/") for message in channel["messages"].values())
