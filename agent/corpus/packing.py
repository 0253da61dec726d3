"""Packs made: a fresh generation of the papers chosen, or what changed since another pack, compressed part by part.

The same papers and vectors make the same bytes: rows in the order of arXiv ids, one thread for each graph, keyword
segments named after what they hold, no times. A folder that is being packed into has `.packing` in it and no
manifest.json, which comes last.
"""

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import zstandard

from agent.corpus.contents import Contents
from agent.corpus.packs import open_pack
from agent.corpus.selecting import Chosen
from agent.crash_points import crash_point
from agent.domain import Paper
from agent.errors import CorpusError, PackError
from agent.paths import sync_folder, write_file
from agent.protocol.pack_manifest import (
    CHANGES,
    MANIFEST,
    MODEL,
    PAPERS,
    Base,
    PackManifest,
    Part,
    Selection,
    check_wish,
    dump_pack_manifest,
)
from agent.search.keyword_files import settle
from agent.search.keywords import KeywordIndex
from agent.search.vectors import VectorIndex
from agent.store.faults import shortage_of
from agent.store.fresh import FreshPapers, Snapshot
from agent.store.papers import PaperStore
from agent.store.rows import StoredVectors, compare

LEVEL: Final = 9
"""Of zstd: a pack is made once and fetched often, and unpacks as fast at any level (docs/packs.md)."""
SEGMENT_ROWS: Final = 131_072
"""A fixed number, whatever machine packs; building one takes 430 MB."""
KEYWORDS_A_SEGMENT: Final = 40_000
KEYWORDS_HEAP_BYTES: Final = 256_000_000
CHUNK_BYTES: Final = 1 << 20
SCRATCH: Final = ".packing"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: not known)."""
Row = tuple[Paper, bytes | None]


def pack(
    corpus: Path,
    model: str,
    dimensions: int,
    target: Path,
    *,
    selection: Selection | None = None,
    version: str | None = None,
    since: Path | None = None,
    model_files: Path | None = None,
    progress: Progress = lambda *_: None,
) -> PackManifest:
    """Pack the papers of the generation `corpus`, as it stands at this moment, into the folder `target`.

    `target` may not exist, or be empty, or hold what a killed pack left. `version` defaults to the head of the hash of
    the contents. `since`: only what changed since that whole pack, of its selection unless one is given.
    `model_files`: the folder of the installed model, to go with it. Raises CorpusError.
    """
    check_wish(version or "0", selection or Selection())
    try:
        with shortage_of(str(target)):
            scratch = _begin(target)
            try:
                with Snapshot(corpus / PAPERS, model, dimensions) as snapshot:
                    if since:
                        made = _increment(snapshot, scratch, since, selection, model, dimensions, progress)
                    else:
                        made = _whole(snapshot, scratch, selection or Selection(), model, dimensions, progress)
                files = made.files + ([] if model_files is None else _files(model_files, MODEL))
                manifest = _compressed(made, files, version, model, dimensions, target, progress)
                shutil.rmtree(scratch / "made")
                sync_folder(target)
                crash_point("packing.pack:no-manifest")
                write_file(target / MANIFEST, dump_pack_manifest(manifest))
                crash_point("packing.pack:scratch-left")
                scratch.rmdir()
            except BaseException:
                if not (target / MANIFEST).exists():
                    _clear(target)
                raise
    except OSError as error:
        raise CorpusError(f"{error.filename or target} cannot be written: {error.strerror}") from error
    return manifest


class _Made(NamedTuple):
    """What is to be packed: files by their paths in a generation."""

    contents: Contents
    selection: Selection
    base: Base | None
    files: list[tuple[str, Path]]


# -- the target --------------------------------------------------------------------------------------------------------


def _begin(target: Path) -> Path:
    """Make the folder, clear it of what a killed pack left, and mark it."""
    target.mkdir(parents=True, exist_ok=True)
    scratch = target / SCRATCH
    if scratch.is_dir() and not (target / MANIFEST).exists():
        _clear(target)
    if any(target.iterdir()):
        raise CorpusError(f"{target} is not empty", hint="name a new folder, or an empty one")
    scratch.mkdir()
    sync_folder(target)
    crash_point("packing.begin:marked")
    (scratch / "made").mkdir()
    return scratch


def _clear(target: Path) -> None:
    for left in (*target.glob("*.zst"), *target.glob(f".{MANIFEST}.tmp")):
        left.unlink(missing_ok=True)
    shutil.rmtree(target / SCRATCH, ignore_errors=True)


# -- a whole pack ------------------------------------------------------------------------------------------------------


def _whole(
    snapshot: Snapshot, scratch: Path, selection: Selection, model: str, dimensions: int, progress: Progress
) -> _Made:
    made = scratch / "made"
    contents, keys = Contents(model, dimensions), array("q")
    chosen = Chosen(selection, snapshot.facts)
    with (scratch / "vectors").open("w+b") as spool:
        with closing(FreshPapers(made / PAPERS)) as fresh:
            fresh.add(_spooled(_hashed(chosen.of(snapshot.rows()), contents, progress), keys, spool))
            matrix = _matrix(spool, len(keys), dimensions)
            fresh.add_vectors(model, zip(keys, map(bytes, matrix), strict=True))
            if not contents.papers:
                raise CorpusError("the selection holds no papers", hint="corpus stats says what there is")
            corpus = contents.hexdigest()[:32]
            fresh.finish(corpus)
        crash_point("packing.whole:papers-made")
        with ThreadPoolExecutor(1) as beside:
            keywords = beside.submit(_make_keywords, made, corpus)
            _make_vectors(made, corpus, model, dimensions, np.array(keys, np.int64), matrix, progress)
            keywords.result()
        del matrix
    (scratch / "vectors").unlink()
    files = [(PAPERS, made / PAPERS), *_files(made / "vectors", "vectors"), *_files(made / "keywords", "keywords")]
    return _Made(contents, selection, None, files)


def _hashed(rows: Iterator[Row], contents: Contents, progress: Progress) -> Iterator[Row]:
    for row in rows:
        contents.add(*row)
        if contents.papers % 1000 == 0:
            progress("reading papers", contents.papers, 0)
        yield row


def _spooled(rows: Iterator[Row], keys: "array[int]", spool: BinaryIO) -> Iterator[Paper]:
    """The papers, which will be numbered from 1; their vectors go aside, to be written in one place after them."""
    for key, (paper, vector) in enumerate(rows, 1):
        if vector is not None:
            keys.append(key)
            spool.write(vector)
        yield paper


def _matrix(spool: BinaryIO, rows: int, dimensions: int) -> Any:
    spool.flush()
    if not rows:
        return np.empty((0, dimensions), np.int8)
    return np.asarray(np.memmap(spool, np.int8, "r", shape=(rows, dimensions)))


def _make_vectors(
    made: Path, corpus: str, model: str, dimensions: int, keys: Any, matrix: Any, progress: Progress
) -> None:
    total = len(keys)
    index = VectorIndex(
        made / "vectors",
        corpus,
        model,
        dimensions,
        lambda: total,
        segment_rows=SEGMENT_ROWS,
        writable=True,
        check=False,
        threads=1,
    )
    for start in range(0, total, SEGMENT_ROWS):
        end = min(start + SEGMENT_ROWS, total)
        progress("building the vector index", start, total)
        index.extend(StoredVectors(keys[start:end], matrix[start:end], end))
        index.flush()
        crash_point("packing.whole:segment-made")


def _make_keywords(made: Path, corpus: str) -> None:
    with closing(PaperStore(made / PAPERS, read_only=True)) as papers:
        folder = made / "keywords"
        index = KeywordIndex(folder, corpus, papers.last_change, writable=True, check=False)
        number = 0
        # Each a little longer than the one before: tantivy merges those of one length in no certain order.
        while changes := papers.changes_since(index.reached, KEYWORDS_A_SEGMENT + number):
            index.apply(changes, changes[-1].number, heap_bytes=KEYWORDS_HEAP_BYTES)
            number += 1
    settle(folder)


# -- an increment ------------------------------------------------------------------------------------------------------


def _increment(
    snapshot: Snapshot,
    scratch: Path,
    since: Path,
    selection: Selection | None,
    model: str,
    dimensions: int,
    progress: Progress,
) -> _Made:
    made = scratch / "made"
    with open_pack(since) as base:
        manifest = base.manifest
        if manifest.base:
            raise PackError(f"{since} is an increment itself", hint="name the whole pack of that version")
        if (manifest.model, manifest.dimensions) != (model, dimensions):
            raise PackError(
                f"{since} is of model {manifest.model} with {manifest.dimensions} dimensions, "
                f"the corpus of {model} with {dimensions}",
                hint="make a whole pack: all vectors change",
            )
        base.unpack(scratch / "base", only=PAPERS)
    chosen = Chosen(selection or manifest.selection, snapshot.facts)
    contents = Contents(model, dimensions)
    removed: list[str] = []
    keys = array("q")
    with closing(FreshPapers(made / CHANGES)) as fresh, (scratch / "vectors").open("w+b") as spool:
        with Snapshot(scratch / "base" / PAPERS, model, dimensions) as before:
            changed = _changed(before.rows(), _hashed(chosen.of(snapshot.rows()), contents, progress), removed)
            fresh.add(_spooled(changed, keys, spool))
        fresh.add_vectors(model, zip(keys, map(bytes, _matrix(spool, len(keys), dimensions)), strict=True))
        fresh.add_removals(removed)
        # Named after both: the same change to another corpus is another thing.
        fresh.finish(hashlib.sha256(f"{manifest.contents} {contents.hexdigest()}".encode()).hexdigest()[:32])
    shutil.rmtree(scratch / "base")
    (scratch / "vectors").unlink()
    if not fresh.last_key:
        raise PackError(f"nothing has changed since {since}, version {manifest.version}")
    base_of = Base(manifest.version, manifest.contents)
    return _Made(contents, chosen.selection, base_of, [(CHANGES, made / CHANGES)])


def _changed(before: Iterator[Row], after: Iterator[Row], removed: list[str]) -> Iterator[Row]:
    """Walk through both in the order of arXiv ids: what of `after` is new or another; `removed` gets what is gone.

    And what `PaperStore.put` would leave as it is: that is removed and added again.
    """
    old = next(before, None)
    for row in after:
        name = row[0].arxiv_id.encode()
        while old and old[0].arxiv_id.encode() < name:
            removed.append(old[0].arxiv_id)
            old = next(before, None)
        if old is None or old[0].arxiv_id.encode() != name:
            yield row
            continue
        if old != row:
            if _would_stay(old, row):
                removed.append(row[0].arxiv_id)
            yield row
        old = next(before, None)
    while old:
        removed.append(old[0].arxiv_id)
        old = next(before, None)


def _would_stay(old: Row, new: Row) -> bool:
    verdict = compare(old[0], new[0])
    keeps_vector = old[0].text == new[0].text and old[1] is not None
    return verdict == "older" or (keeps_vector and old[1] != new[1])


# -- parts -------------------------------------------------------------------------------------------------------------


def _files(folder: Path, name: str) -> list[tuple[str, Path]]:
    """The files of a folder by their paths in a generation, in order; locks are left out."""
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix != ".lock")
    return sorted((f"{name}/{path.name}", path) for path in files)


def _compressed(
    made: _Made,
    files: list[tuple[str, Path]],
    version: str | None,
    model: str,
    dimensions: int,
    target: Path,
    progress: Progress,
) -> PackManifest:
    total = sum(path.stat().st_size for _, path in files)
    done, parts = 0, []
    for place, path in files:
        parts.append(_compress(path, place, target, partial(_told, progress, done, total)))
        done += parts[-1].unpacked_bytes
        crash_point("packing.parts:part-done")
        if place.split("/")[0] != MODEL:
            path.unlink()  # as many bytes less to have room for
    contents = made.contents.hexdigest()
    return PackManifest(
        version=version or contents[:12],
        model=model,
        dimensions=dimensions,
        papers=made.contents.papers,
        embedded=made.contents.embedded,
        contents=contents,
        selection=made.selection,
        base=made.base,
        parts=tuple(parts),
    )


def _told(progress: Progress, before: int, total: int, done: int) -> None:
    progress("compressing", before + done, total)


def _compress(source: Path, place: str, target: Path, progress: Callable[[int], None]) -> Part:
    packed, unpacked = hashlib.sha256(), hashlib.sha256()
    size, written = source.stat().st_size, 0
    name = f"{place.replace('/', '-')}.zst"
    # Several threads make the same bytes as one thread of theirs, but not as none.
    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=max(1, os.cpu_count() or 1), write_checksum=True)
    stream = compressor.compressobj(size=size)
    with source.open("rb") as file, (target / name).open("xb") as part:

        def write(piece: bytes) -> None:
            nonlocal written
            packed.update(piece)
            part.write(piece)
            written += len(piece)

        for chunk in iter(partial(file.read, CHUNK_BYTES), b""):
            unpacked.update(chunk)
            write(stream.compress(chunk))
            progress(file.tell())
        write(stream.flush())
        part.flush()
        os.fsync(part.fileno())
    return Part(name, written, packed.hexdigest(), place, size, unpacked.hexdigest())
