"""The files of a keyword index as they are packed: named after what they hold.

tantivy gives each segment a random name, which stands in meta.json and .managed.json and in no other file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

LISTS: Final = ("meta.json", ".managed.json")


def settle(folder: Path) -> None:
    """Rename the segments of an index that nobody has open, order them by their size, and drop all other files.

    The same documents added in the same order then make the same files.
    """
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
    for segment in meta["segments"]:
        name = segment["segment_id"].replace("-", "")
        files = sorted(folder.glob(f"{name}.*"))
        digest = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        new = digest.hexdigest()[:32]
        for path in files:
            path.rename(path.with_name(path.name.replace(name, new)))
        segment["segment_id"] = "-".join((new[:8], new[8:12], new[12:16], new[16:20], new[20:]))
    meta["segments"].sort(key=lambda segment: (-segment["max_doc"], segment["segment_id"]))
    kept = {segment["segment_id"].replace("-", "") for segment in meta["segments"]}
    named = sorted(path.name for path in folder.iterdir() if path.name.split(".")[0] in kept)
    for path in folder.iterdir():
        if path.name not in named and path.name not in (*LISTS, "reached.json"):
            path.unlink()
    # The files are of a folder that is being made: they need not be replaced in one step.
    (folder / "meta.json").write_text(json.dumps(meta, indent=2), "utf-8")
    (folder / ".managed.json").write_text(json.dumps([*named, "meta.json"]), "utf-8")
