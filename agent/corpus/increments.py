"""An increment put into effect: a copy of a generation that may be in use, and the changes applied to it."""

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from agent.crash_points import crash_point
from agent.errors import PackError
from agent.paths import sync_file, sync_folder
from agent.protocol.pack_manifest import PAPERS, PackManifest
from agent.search.state import read_state
from agent.store.faults import shortage_of
from agent.store.fresh import Snapshot, copy_papers
from agent.store.papers import PaperStore

BATCH: Final = 500
"""Papers in a transaction: others that write wait no longer than that takes."""
ATTEMPTS: Final = 5
"""At copying indexes whose owner replaces their files meanwhile."""


def require_base(manifest: PackManifest, present: PackManifest | None) -> None:
    """Raise PackError unless an increment builds upon the pack that a generation was made from (None: from none)."""
    base = manifest.base
    if base is None or (present and (present.version, present.contents) == (base.version, base.contents)):
        return
    what = f"version {present.version} (contents {present.contents[:12]})" if present else "of no pack"
    raise PackError(
        f"version {manifest.version} changes version {base.version} (contents {base.contents[:12]}), "
        f"but the corpus here is {what}",
        hint="install the whole pack of that version",
    )


def apply_increment(
    papers: PaperStore, changes_db: Path, model: str, dimensions: int, *, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Carry out what the changes.db of an increment holds; a second time, or after a kill in between, is the same.

    The indexes follow when the corpus catches up. False where `stop`, asked after each batch, said so. Raises
    CorpusError.
    """
    with Snapshot(changes_db, model, dimensions) as changes:
        removals = changes.removals()
        while batch := list(islice(removals, BATCH)):
            papers.remove(batch)
            if stop():
                return False
        rows = changes.rows()
        while rows_batch := list(islice(rows, BATCH)):
            done = papers.put([paper for paper, _ in rows_batch])
            given = [(key, row[1]) for key, row in zip(done.keys, rows_batch, strict=True) if key and row[1]]
            if given:
                matrix = np.frombuffer(b"".join(vector for _, vector in given if vector), np.int8)
                papers.put_vectors(model, [key for key, _ in given], matrix.reshape(len(given), dimensions))
            crash_point("increments.apply:batch-done")
            if stop():
                return False
    return True


def copy_generation(folder: Path, into: Path) -> None:
    """Copy papers.db and the indexes of a generation that may be in use into a folder, to be changed there.

    Files of the indexes are never written to again once they are named, so they are linked where the file system can.
    What cannot be had whole, since its owner is at it, is left out, to be made from the papers. Raises CorpusError.
    """
    with shortage_of(str(into)):
        into.mkdir(parents=True, exist_ok=True)
        # The indexes first: one that is behind its papers catches up, one that is ahead of them is not believed.
        for name, copy in (("vectors", _copy_vectors), ("keywords", _copy_keywords)):
            _copied(folder / name, into / name, copy)
        crash_point("increments.copy:no-papers")
        copy_papers(folder / PAPERS, into / PAPERS)
        sync_file(into / PAPERS)
        sync_folder(into)
        crash_point("increments.copy:done")


def _copied(folder: Path, into: Path, copy: Callable[[Path, Path], None]) -> None:
    for _ in range(ATTEMPTS):
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        try:
            copy(folder, into)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # its owner has replaced a file, or there is no index
        sync_folder(into)
        return
    shutil.rmtree(into, ignore_errors=True)


def _copy_vectors(folder: Path, into: Path) -> None:
    content = (folder / "segments.json").read_bytes()
    for name in read_state(folder / "segments.json")["crc32"]:
        link_or_copy(folder / name, into / name)
    if (folder / "segments.json").read_bytes() != content:
        raise ValueError("changed meanwhile")
    _write(into / "segments.json", content)


def _copy_keywords(folder: Path, into: Path) -> None:
    state = (folder / "reached.json").read_bytes()  # first: what is committed after it is replayed
    meta = (folder / "meta.json").read_bytes()
    names = {segment["segment_id"].replace("-", "") for segment in json.loads(meta)["segments"]}
    files = sorted(path.name for path in folder.iterdir() if path.name.split(".")[0] in names)
    for name in files:
        link_or_copy(folder / name, into / name)
    if (folder / "meta.json").read_bytes() != meta:
        raise ValueError("changed meanwhile")
    _write(into / "meta.json", meta)
    _write(into / ".managed.json", json.dumps([*files, "meta.json"]).encode())
    _write(into / "reached.json", state)


def link_or_copy(source: Path, copy: Path) -> None:
    """One file that is never written to again, under a second name. Raises OSError."""
    try:
        copy.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links, or a file of another owner
        shutil.copyfile(source, copy)
        sync_file(copy)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync_file(path)
