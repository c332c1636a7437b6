"""Copies of many records in one object: a run that continues need not ask for each.

::

    out.zarr.geopatch/<fp8>/tiles/<id>.json      a record; it alone says that a super-tile is done
                            bundles/<name>.json  copies of many, by whoever drives the run

A record is an object of its own because any number of workers write them without a lock.  To read
100,000 of them from a bucket, a request each, takes a minute or several.  But a bucket lists a
thousand names in one request, and with each name the ETag, which is the MD5 of an object that was
written in one piece.  A copy with that MD5 *is* the object, and is read in its place::

    list tiles/ ---> name, MD5 ----- that of a copy -----> the copy
                              +----- another, or none ---> read tiles/<id>.json

So nothing is believed of a bundle: what a listing does not vouch for is read as if there were no
bundles.  One that is torn, stale or lost costs the requests that it would have saved, no more.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import md5
from typing import Self

from geopatch_dask.errors import GeopatchError
from geopatch_dask.store.location import Location
from geopatch_dask.store.record_format import parse_object

__all__ = ["BUNDLES", "FEW", "MANY", "Bundler", "copies", "digest", "packed"]

BUNDLES = "bundles"
#: Records of a bundle: about 1 MB.
MANY = 1000
#: Fewer are not worth an object.
FEW = 64
#: Seconds that a run which ends by an exception waits for its last bundle.
LAST_WORDS = 5.0
#: Version of the format of a bundle; a reader passes over any other.
SCHEMA = 1
#: Bundles that are read at the same time.
_READERS = 8

_log = logging.getLogger(__name__)


def digest(raw: bytes) -> str:
    """What a bucket says of an object with these bytes, written in one piece: MD5, hex."""
    return md5(raw, usedforsecurity=False).hexdigest()


def packed(place: Location, raw: bytes) -> bytes:
    """A record on its way to a :class:`Bundler`, about 500 bytes; none where bundles are no use.

    On a local disk reading an object costs no more than finding it in a bundle.
    """
    is_bucket = not place.is_local and place.store is None
    return zlib.compress(raw) if is_bucket else b""


class Bundler:
    """Collects the records of a run as they come in, and writes a bundle of every thousand.

    A context manager: at its end, the rest is written.  Writing goes on in threads of its own and
    may fail, as nothing depends on it; who ends because of an exception waits for it a little only.

    Parameters
    ----------
    folder : Location
        That of the ledger.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._held: list[bytes] = []
        self._writing: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, why: type[BaseException] | None, *_: object) -> None:
        if len(self._held) >= FEW:
            self._flush()
        if self._writing is not None:
            self._writing.join(None if why is None else LAST_WORDS)

    def add(self, record: bytes) -> None:
        """One more record, as :func:`packed` makes it of what was written; or none.

        Where bundles cannot be written as fast as they fill, some are left out: what waits here
        must not grow.
        """
        if record:
            self._held.append(record)
        if len(self._held) < MANY:
            return
        if self._writing is None or not self._writing.is_alive():
            self._flush()
        else:
            self._held = []

    def _flush(self) -> None:
        args = (self._folder, self._held)
        self._writing = threading.Thread(
            target=_write, args=args, name="geopatch-bundle", daemon=True
        )
        self._writing.start()
        self._held = []


def _write(folder: Location, records: list[bytes]) -> None:
    texts = [zlib.decompress(record).decode() for record in records]
    document = {"schema": SCHEMA, "records": texts}
    try:
        folder.write(f"{BUNDLES}/{uuid.uuid4().hex}.json", json.dumps(document).encode())
    except GeopatchError as error:
        _log.debug("%d records are in no bundle: %s", len(records), error)


def copies(folder: Location, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Records that are in bundles: the digest and the bytes of each, once.

    Parameters
    ----------
    folder : Location
        That of the ledger.
    wanted : set of str
        Digests that a listing told of.
    """
    names: list[str] = []
    with suppress(GeopatchError):
        names = folder.list(BUNDLES)
    found: set[str] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(names), _READERS):
            group = names[start : start + _READERS]
            for records in pool.map(lambda name: _read(folder, name), group):
                for raw in records:
                    name = digest(raw)
                    if name in wanted and name not in found:
                        found.add(name)
                        yield name, raw


def _read(folder: Location, name: str) -> list[bytes]:
    """The records of a bundle; none if it cannot be read."""
    try:
        raw = folder.read(name)
        document = {} if raw is None else parse_object(raw, name)
    except GeopatchError as error:
        _log.debug("%s is passed over: %s", name, error)
        return []
    texts = document.get("records") if document.get("schema") == SCHEMA else None
    if not isinstance(texts, list):
        return []
    return [text.encode() for text in texts if isinstance(text, str)]
