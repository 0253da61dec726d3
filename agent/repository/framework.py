"""python-tuf and its keys: the one place that imports them.

securesystemslib.signer imports boto3 where that is installed, for keys that lie at AWS. No key of ours does, and on a
small board it would be 17 MB and seconds: here it is told that there is none.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_pretending = _modules.setdefault("boto3", None) is None  # then its import fails as if it were not installed
try:
    from securesystemslib.signer import CryptoSigner
    from tuf.api import exceptions as tuf_errors
    from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
    from tuf.api.serialization import DeserializationError
    from tuf.ngclient import FetcherInterface, Updater
finally:
    if _pretending:
        del _modules["boto3"]

__all__ = [
    "CryptoSigner",
    "DeserializationError",
    "FetcherInterface",
    "MetaFile",
    "Metadata",
    "Root",
    "Signed",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
    "Updater",
    "tuf_errors",
]
