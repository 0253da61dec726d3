"""`model` and `embed`: install, list and try embedding models."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.context import State, as_json, pass_state, print_json

if TYPE_CHECKING:
    from agent.model.install import SelfTest


@click.group()
def model() -> None:
    """Install and check embedding models."""


@model.command()
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="A folder, a wheel or a ready-made ONNX file (tokenizer.json beside it) instead of the network.",
)
@click.option("--shared", is_flag=True, help="Beside the program, for every data folder, instead of in this one.")
@as_json
@pass_state
def install(state: State, name: str, source: Path | None, shared: bool, as_json: bool) -> None:
    """Fetch, verify, convert to int8 and test the model NAME."""
    from agent.model.install import install as install_model
    from agent.paths import shared_models_dir

    folder = shared_models_dir() if shared else state.config.data_dir / "models"
    result = install_model(name, folder, source=source)
    _tell(name, "installed in", folder / name, result, as_json=as_json)


@model.command(name="list")
@as_json
@pass_state
def list_models(state: State, as_json: bool) -> None:
    """List the models that are known and where they are installed."""
    from agent.paths import catalog_dir, find_model, model_folders

    known = {path.parent.name for path in catalog_dir().glob("*/model.yaml")}
    for folder in model_folders(state.config.data_dir):
        known |= {path.parent.name for path in folder.glob("[!.]*/model.onnx")}
    rows = {name: find_model(state.config.data_dir, name) for name in sorted(known)}
    if as_json:
        print_json({name: str(path) if path else None for name, path in rows.items()})
        return
    for name, path in rows.items():
        click.echo(f"{name}  {path or 'not installed'}")


@model.command()
@click.argument("name", required=False)
@as_json
@pass_state
def verify(state: State, name: str | None, as_json: bool) -> None:
    """Check an installed model's files and vectors. NAME defaults to the configured one."""
    from agent.errors import ModelError
    from agent.model.install import verify as verify_model
    from agent.paths import find_model

    name = name or state.config.model.name
    folder = find_model(state.config.data_dir, name)
    if not folder:
        raise ModelError(f"model {name} is not installed", hint=f"arxplorer-agent model install {name}")
    _tell(name, "in", folder, verify_model(folder), as_json=as_json)


def _tell(name: str, where: str, folder: Path, result: "SelfTest", *, as_json: bool) -> None:
    if as_json:
        print_json({"model": name, "folder": str(folder), "self_test": result._asdict()})
    elif result.texts:
        cosines = f"cosine to fp32 {result.mean:.4f} in the mean, {result.worst:.4f} at worst"
        click.echo(f"{name} {where} {folder}: self-test passed, {cosines}")
    else:
        click.echo(f"{name} {where} {folder}: self-test passed (no reference vectors known for it)")


@click.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--document", is_flag=True, help="Embed as documents; default: as queries.")
@as_json
@pass_state
def embed(state: State, text: tuple[str, ...], document: bool, as_json: bool) -> None:
    """Print the vector of each TEXT."""
    from agent.search.api import load_embedder

    embedder = load_embedder(state.config)
    vectors = embedder.documents(text) if document else [embedder.query(one) for one in text]
    rows = [[round(float(value), 6) for value in vector] for vector in vectors]
    if as_json:
        print_json({"embeddings": rows, "model": embedder.manifest.name, "dimensions": embedder.dimensions})
        return
    for row in rows:
        click.echo(" ".join(f"{value:.6f}" for value in row))
