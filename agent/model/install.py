"""Install a model: gather, verify, convert, self-test, and only then replace what is there."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from agent.crash_points import crash_point
from agent.errors import ModelError
from agent.model import fetch
from agent.paths import catalog_dir, exchange, sync_file, sync_folder
from agent.protocol.manifest import CONVERTIBLE, ModelManifest, dump_manifest, parse_manifest
from agent.search.embedder import Embedder

COSINE_EACH = 0.98
COSINE_MEAN = 0.995
COSINE_BATCH = 0.99999


class SelfTest(NamedTuple):
    """Cosines of an installed model to the reference vectors (1.0 where the catalog has none for it)."""

    texts: int
    worst: float
    mean: float
    worst_in_batch: float


def known_manifest(name: str, path: Path | None = None) -> ModelManifest:
    """The manifest for `name`: a model.yaml that lies with `path`, else the project's catalog."""
    beside = [path / "model.yaml", path.parent / "model.yaml"] if path else []
    for candidate in [*beside, catalog_dir() / name / "model.yaml"]:
        if candidate.is_file():
            manifest = _read_manifest(candidate)
            if manifest.name == name:
                return manifest
    known = ", ".join(sorted(folder.parent.name for folder in catalog_dir().glob("*/model.yaml")))
    raise ModelError(
        f"no manifest for model {name!r} (known: {known})",
        hint="put a model.yaml beside the files; docs/models.md",
    )


def install(name: str, models_dir: Path, *, source: Path | None = None) -> SelfTest:
    """Install `name` into models_dir/name, from its sources or from `source`.

    Raises ModelError and leaves an installed model alone when anything is wrong: checksum, architecture,
    truncated file, missing conversion extra, self-test, a folder that cannot be written.
    """
    manifest = known_manifest(name, source)
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _alone_in(models_dir):
            for left in models_dir.glob(f".{name}.*"):
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=models_dir) as scratch:
                return _install(manifest, Path(scratch).resolve(), models_dir / name, source)
    except OSError as error:
        raise ModelError(f"{name} cannot be installed in {models_dir}: {error}") from error


def _install(manifest: ModelManifest, scratch: Path, target: Path, source: Path | None) -> SelfTest:
    staged = scratch / manifest.name
    staged.mkdir()
    if source:
        fetch.copy_local(source, staged)
    else:
        _require_conversion_extra()
        fetch.fetch(manifest, staged)
    _verify(staged, manifest.files)
    ready_made = (staged / "model.onnx").is_file()
    if not ready_made:
        _convert(staged, manifest)
    _finish(staged, manifest)
    try:
        result = self_test(staged)
    except ModelError as error:  # in the words of whoever gave the files, not of the scratch folder
        raise ModelError(
            (f"{source}: " if source else "") + error.message.replace(f"{staged}/", ""),
            hint="the file is damaged, truncated or of another model" if ready_made else None,
        ) from error
    _swap(staged, target, scratch / "replaced")
    return result


def verify(folder: Path, name: str | None = None) -> SelfTest:
    """Check an installed model's files against the hashes taken at installation, then self-test it.

    With `name` it has to be that model.
    """
    manifest = _read_manifest(folder / "model.yaml")
    if name is not None and manifest.name != name:
        raise ModelError(f"{folder}/model.yaml: name: expected {name}, got {manifest.name}")
    _verify(folder, manifest.installed, complete=True)
    return self_test(folder)


def self_test(folder: Path) -> SelfTest:
    """Embed the catalog's reference texts and compare with their fp32 vectors, one by one and as a batch."""
    embedder = Embedder(folder)
    references = _references(embedder.manifest.name)
    texts = [text for text, _ in references] or ["a probe of the output's shape", "another one"]
    try:
        alone = np.vstack([embedder.documents([text]) for text in texts])
        batch = embedder.documents(texts)
    except ModelError:
        raise
    except Exception as error:  # the runtime raises nothing narrower
        raise ModelError(f"{folder.name}: the model cannot be run: {error}") from error
    if alone.shape != (len(texts), embedder.dimensions) or not np.isfinite(alone).all():
        raise ModelError(
            f"{folder.name}: the model gives vectors of shape {alone.shape[1:]}, not {embedder.dimensions}"
        )
    together = float((alone * batch).sum(axis=1).min())
    if not references:
        return SelfTest(0, 1.0, 1.0, together)
    expected = np.array([vector for _, vector in references], np.float32)
    cosines = (alone * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)
    worst, mean = float(cosines.min()), float(cosines.mean())
    if worst < COSINE_EACH or mean < COSINE_MEAN or together < COSINE_BATCH:
        raise ModelError(
            f"{folder.name}: self-test failed: cosine to the reference {worst:.4f} at worst ({COSINE_EACH} needed), "
            f"{mean:.4f} in the mean ({COSINE_MEAN}), alone against in a batch {together:.6f} ({COSINE_BATCH})"
        )
    return SelfTest(len(texts), worst, mean, together)


def _read_manifest(path: Path) -> ModelManifest:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return parse_manifest(text, where=str(path))


def _require_conversion_extra() -> None:
    missing = [package for package in ("onnx", "safetensors", "pip") if find_spec(package) is None]
    if missing:
        raise ModelError(
            f"converting a model needs {', '.join(missing)}, which this installation lacks",
            hint="pip install 'arxplorer-agent[model]', or install a ready-made model with --from model.onnx",
        )


def _convert(staged: Path, manifest: ModelManifest) -> None:
    _require_conversion_extra()
    from agent.model.bert import read_config, write_graph

    if manifest.architecture not in CONVERTIBLE:
        raise ModelError(
            f"architecture: {manifest.architecture!r} cannot be converted (known: {', '.join(CONVERTIBLE)})",
            hint=f"model install {manifest.name} --from model.onnx takes a ready-made file",
        )
    for name in fetch.WANTED:
        if not (staged / name).is_file():
            raise ModelError(f"{name} is missing: a conversion needs {', '.join(fetch.WANTED)}")
    config = read_config(staged / "config.json")
    write_graph(staged / "model.safetensors", config, manifest, staged / "model.onnx")


def _finish(staged: Path, manifest: ModelManifest) -> None:
    """Leave exactly the files of an installed model, synced, with their hashes in model.yaml."""
    missing = [name for name in fetch.READY_MADE if not (staged / name).is_file()]
    if missing:
        raise ModelError(f"{', '.join(missing)} is missing: an installed model needs {', '.join(fetch.READY_MADE)}")
    for path in staged.iterdir():
        if path.name not in (*fetch.READY_MADE, fetch.EXTERNAL_DATA):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    installed = {path.name: _sha256(path) for path in sorted(staged.iterdir())}
    (staged / "model.yaml").write_text(dump_manifest(msgspec.structs.replace(manifest, installed=installed)), "utf-8")
    for path in staged.iterdir():
        sync_file(path)
    sync_folder(staged)


def _swap(staged: Path, target: Path, replaced: Path) -> None:
    """Put a model in its place. One that was there serves until then, also for who opens it at this moment."""
    crash_point("install.swap:before-rename")
    if not target.exists():
        staged.rename(target)
    else:
        try:
            exchange(staged, target)
        except OSError:  # not every file system can
            target.rename(replaced)
            staged.rename(target)
    crash_point("install.swap:before-sync")
    sync_folder(target.parent)
    crash_point("install.swap:scratch-left")


@contextmanager
def _alone_in(models_dir: Path) -> Iterator[None]:
    """One installation at a time, so that what lies about is known to be of one that was killed."""
    descriptor = os.open(models_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ModelError(f"another process is installing a model in {models_dir}", hint="wait for it") from error
    finally:
        os.close(descriptor)


def _verify(folder: Path, expected: dict[str, str], *, complete: bool = False) -> None:
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            if complete:
                raise ModelError(f"{path} is missing")
            continue
        actual = _sha256(path)
        if actual != digest:
            raise ModelError(
                f"{name}: checksum does not match: expected sha256 {digest}, got {actual}",
                hint="the file is damaged, truncated or another version; fetch it again",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _references(name: str) -> list[tuple[str, list[float]]]:
    path = catalog_dir() / name / "reference.jsonl"
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(row["text"], row["vector"]) for row in rows]
