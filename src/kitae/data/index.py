"""The store of shards: no pixels, only where each image lies and what is known about it."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import Item, Progress
from kitae.data.build import FORMAT, name_columns, publish, resolve
from kitae.data.cache import storage_errors
from kitae.data.parallel import each_image
from kitae.data.remote import is_url
from kitae.data.shards import ShardSource, hashes_of
from kitae.errors import DataError
from kitae.preprocess import decode


def index_shards(
    source: ShardSource,
    request: dict[str, Any],
    fingerprint: str,
    final: Path,
    sound: Callable[[Path], bool],
    progress: Progress | None,
    threads: int | None,
) -> None:
    """Index the shards of a source. Arguments as of `build.build`.

    With `on_corrupt: skip` every image is decoded once, to leave out those that cannot be.

    Raises:
        DataError: a broken shard, a sample without image or label, sizes that differ while `image_size` is null.
    """
    table = source.table
    # Images are decoded from their files each time, so nothing is reduced before.
    rules = replace(resolve(source, request, threads), store_size=None)
    kept = np.ones(len(table.labels), np.bool_)
    skipped = [(problem.partition(":")[0], problem) for problem in source.problems]
    hashes = hashes_of(source)
    if request["on_corrupt"] == "skip":

        def readable(row: int, item: Item) -> DataError | None:
            try:
                assert isinstance(item, bytes)
                decode(item, rules, table.names[row])
            except DataError as error:
                return error
            return None

        row = 0
        with closing(each_image(source, readable, threads)) as blocks:
            for results in blocks:
                for error in results:
                    if error is not None:
                        kept[row] = False
                        skipped.append((table.names[row], str(error)))
                    row += 1
                if progress is not None:
                    progress(row, len(kept))
        if not kept.any():
            raise DataError(f"{source.name}: none of its {len(kept)} images can be read; the first: {skipped[0][1]}")
    columns: dict[str, NDArray[Any]] = {
        "labels.i64": table.labels,
        "splits.u8": table.splits,
        "keys.i64": table.keys,
        "hashes.u8": hashes,
        "places.i64": source.places,
    }
    contents = {name: np.ascontiguousarray(column[kept]).tobytes() for name, column in columns.items()}
    digest = hashlib.blake2b(digest_size=16)
    for name, data in contents.items():
        digest.update(name.encode() + data)
    digest.update(json.dumps([table.classes, rules.to_dict()]).encode())
    contents |= name_columns([table.names[int(row)] for row in np.flatnonzero(kept)])
    manifest = {
        "format": FORMAT,
        "source": source.name,
        "request": request,
        "rules": rules.to_dict(),
        "classes": table.classes,
        "count": int(kept.sum()),
        "skipped": skipped,
        "fingerprint": digest.hexdigest(),
        "shards": [shard if is_url(shard) else str(Path(shard).expanduser().absolute()) for shard in source.shards],
    }
    if source.fingerprint() != fingerprint:
        raise DataError(f"{source.name}: files changed while they were read, try again")
    temporary = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with storage_errors(final.parent):
            temporary.mkdir()
            publish(contents, manifest, temporary, final, sound)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
