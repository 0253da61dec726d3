"""The house as ARCHITECTURE.md describes it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[1] / "agent"

# Rooms from the top floor down; a room may import from the rooms below it only.
FLOORS = (
    "__main__",
    "cli",
    "aws",
    "service",
    "channel",
    "bridge",
    "handlers",
    "evaluation",
    "configuring",
    "updating",
    "local_cloud",
    "cloud",
    "device",
    "mqtt",
    "corpus",
    "repository",
    "model",
    "search",
    "store",
    "protocol",
    "settings",
    "config",
    "footprint",
    "paths",
    "crash_points",
    "logs",
    "domain",
    "errors",
    "__init__",
)
ONLY_IMPORTERS = {
    "awscrt": {
        "cloud/service_client.py",
        "mqtt/connection.py",
        "mqtt/link.py",
        "mqtt/options.py",
        "mqtt/packets.py",
        "logs.py",
    },
    "awsiot": {"cloud/jobs_client.py", "cloud/service_client.py", "cloud/shadow_client.py"},
    "boto3": {"cloud/setup/account.py"},
    "botocore": {"cloud/setup/account.py"},
    "cryptography": {"cloud/identity.py", "cloud/setup/keys.py", "repository/keys.py"},
    "onnxruntime": {"search/native.py"},
    "tokenizers": {"search/embedder.py"},
    "usearch": {"search/native.py"},
    "tantivy": {"search/keywords.py"},
    "sqlite_utils": {"store/schema.py"},
    "sqlite3": {
        "local_cloud/outbox_rows.py",
        "store/accepted.py",
        "store/agent_db.py",
        "store/connection.py",
        "store/faults.py",
        "store/fresh.py",
        "store/inspection.py",
        "store/outbox.py",
        "store/journal.py",
        "store/papers.py",
        "store/papers_file.py",
        "store/remembered.py",
        "store/schema.py",
    },
    "onnx": {"model/bert.py"},
    "mqtt5": {
        "local_cloud/audit.py",
        "local_cloud/distortion.py",
        "local_cloud/door.py",
        "local_cloud/gateway.py",
        "local_cloud/packets.py",
        "local_cloud/relay.py",
        "local_cloud/session.py",
    },
    "trustme": {"local_cloud/certificates.py"},
    "huggingface_hub": {"model/fetch.py"},
    "securesystemslib": {"repository/framework.py"},
    "tuf": {"repository/framework.py"},
    "urllib3": {"corpus/oai.py", "repository/transport.py"},
    "xml": {"corpus/oai_xml.py"},
}
MAX_LINES = 400


def modules() -> list[Path]:
    return sorted(AGENT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    parts = name.removeprefix("agent").strip(".").split(".")
    return parts[0] if parts[0] in FLOORS else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(AGENT)))
def test_a_module_imports_only_from_the_rooms_below_it(path: Path) -> None:
    own = room("agent." + ".".join(path.relative_to(AGENT).with_suffix("").parts))
    upwards = {
        name
        for name in imports(path)
        if name.startswith("agent.") and room(name) != own and FLOORS.index(room(name)) < FLOORS.index(own)
    }
    assert upwards == set()


@pytest.mark.parametrize(("library", "allowed"), ONLY_IMPORTERS.items())
def test_each_library_is_imported_by_the_one_room_that_wraps_it(library: str, allowed: set[str]) -> None:
    importers = {
        str(path.relative_to(AGENT))
        for path in modules()
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }
    assert importers == allowed


def test_search_and_mqtt_do_not_know_each_other() -> None:
    crossing = [
        (path.name, name)
        for side, other in (("search", "agent.mqtt"), ("mqtt", "agent.search"))
        for path in (AGENT / side).glob("*.py")
        for name in imports(path)
        if name.startswith(other)
    ]
    assert crossing == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(AGENT)))
def test_no_module_is_two_rooms_in_one(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["corpus", "import", "--help"],
        ["corpus", "harvest", "--help"],
        ["run", "--help"],
        ["health", "--help"],
        ["local-cloud", "--help"],
        ["--version"],
        ["cloud", "setup", "--help"],
    ],
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    heavy = {"numpy", "onnxruntime", "tokenizers", "usearch", "tantivy", "awscrt", "sqlite_utils", "rich", "zstandard"}
    heavy |= {"mqtt5", "trustme", "cryptography", "boto3", "botocore", "tuf", "securesystemslib", "urllib3"}
    code = (
        f"import sys; sys.argv = ['arxplorer-agent', *{arguments!r}]\n"
        "from agent.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "click" in loaded
    assert loaded & heavy == set()
