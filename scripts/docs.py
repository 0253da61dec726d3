"""Write config.yaml and the generated pages of docs/ from the code, so that none can say anything else.

scripts/docs.py --check only compares, and exits 1 where they differ.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docs_asyncapi
import msgspec
import yaml
from msgspec.inspect import LiteralType, Metadata, StructType, type_info

from agent.config import Config
from agent.protocol.schemas import schemas

ROOT = Path(__file__).parents[1]
HEAD = """\
# ArXplorer Edge: every key with its default. What you leave out keeps it; docs/configuration.md says more.
# Environment variables override: ARXPLORER__LOCAL_BROKER__PORT=18830. Relative paths count from this file's folder.
"""
INTRO = """\
# Configuration

`config.yaml` is looked for in the working directory, then at `/etc/arxplorer-agent/config.yaml`; `--config FILE` names
another. Every key may be left out. An environment variable such as `ARXPLORER__LOCAL_BROKER__PORT=18830` overrides a
key, and `--data-dir` overrides `store.data_dir`. Relative paths count from the file's folder. A key that is unknown or
out of range is an error that names it; `arxplorer-agent config validate` checks a file, `config show` prints what is in
effect.

This page is written from the code by `scripts/docs`.
"""


class Key:
    """One key: where it stands, its default, what it may be, and its line of documentation."""

    def __init__(self, path: tuple[str, ...], default: Any, kind: Any) -> None:
        self.path, self.default = path, default
        self.description, self.values = "", ""
        while isinstance(kind, Metadata):
            schema = kind.extra_json_schema or {}
            self.description = self.description or str(schema.get("description", ""))
            kind = kind.type
        if isinstance(kind, LiteralType):
            self.values = ", ".join(map(str, kind.values))
        elif getattr(kind, "ge", None) is not None:
            self.values = f"{kind.ge} to {kind.le}"
        else:
            self.values = type(default).__name__.replace("str", "text")


def keys(kind: Any = None, path: tuple[str, ...] = (), value: Any = None) -> Iterator[Key | tuple[str, ...]]:
    """Every section's path, and every key, in order."""
    kind = kind or type_info(Config)
    value = Config() if value is None else value
    for field in kind.fields:
        here = (*path, field.name)
        held = getattr(value, field.name)
        if isinstance(field.type, StructType):
            yield here
            yield from keys(field.type, here, held)
        else:
            yield Key(here, held, field.type)


def config_yaml() -> str:
    lines = [HEAD.rstrip()]
    for key in keys():
        indent = "  " * (len(key) - 1 if isinstance(key, tuple) else len(key.path) - 1)
        if isinstance(key, tuple):
            lines.append(("\n" if len(key) == 1 else "") + f"{indent}{key[-1]}:")
        else:
            value = yaml.safe_dump(key.default, default_flow_style=True).splitlines()[0]
            lines.append(f"{indent}{key.path[-1]}: {value}  # {key.description}")
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    lines = [INTRO.rstrip()]
    everything = list(keys())
    for section in [key for key in everything if isinstance(key, tuple)]:
        lines += [f"\n## `{'.'.join(section)}`\n", "| key | default | may be | what it does |", "|---|---|---|---|"]
        for key in everything:
            if isinstance(key, Key) and key.path[:-1] == section:
                default = msgspec.json.encode(key.default).decode()
                lines.append(f"| `{key.path[-1]}` | `{default}` | {key.values} | {key.description} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Every generated file and what it must hold."""
    written = {
        f"docs/schemas/{name}.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }
    return written | {
        "config.yaml": config_yaml(),
        "docs/configuration.md": configuration_page(),
        "docs/asyncapi.yaml": docs_asyncapi.document(),
    }


def main() -> None:
    wanted = pages()
    stale = [name for name, text in wanted.items() if not (ROOT / name).is_file() or _read(name) != text]
    # A schema of a message that is gone.
    gone = [name for path in ROOT.glob("docs/schemas/*") if (name := str(path.relative_to(ROOT))) not in wanted]
    if "--check" in sys.argv:
        if stale or gone:
            sys.exit(f"not what the code says: {', '.join(stale + gone)}; run scripts/docs")
        return
    for name in stale:
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(wanted[name], "utf-8")
    for name in gone:
        (ROOT / name).unlink()


def _read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


if __name__ == "__main__":
    main()
