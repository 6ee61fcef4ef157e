"""The store of shards: no pixels, only the location of each image, its label and so on."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import Item
from kitae.data.build import Job, resolve
from kitae.data.parallel import each_image
from kitae.data.remote import is_url
from kitae.data.shards import ShardSource, hashes_of
from kitae.errors import DataError
from kitae.files import user_path
from kitae.preprocess import decode


def index_shards(job: Job) -> None:
    """Index the shards of a source.

    With `on_corrupt: skip` every image is decoded once, to leave out those that cannot be.

    Raises:
        DataError: a broken shard, a sample without image or label, sizes that differ while `image_size` is null.
    """
    source = cast(ShardSource, job.source)
    table = source.table
    # Images are decoded from their files each time, so none are stored at a reduced size.
    rules = replace(resolve(job), store_size=None)
    kept = np.ones(len(table.labels), np.bool_)
    skipped = [(problem.partition(":")[0], problem) for problem in source.problems]
    hashes = hashes_of(source)
    if job.request["on_corrupt"] == "skip":

        def readable(row: int, item: Item) -> DataError | None:
            try:
                assert isinstance(item, bytes)
                decode(item, rules, table.names[row])
            except DataError as error:
                return error
            return None

        row = 0
        with closing(each_image(source, readable, job.threads)) as blocks:
            for results in blocks:
                for error in results:
                    if error is not None:
                        kept[row] = False
                        skipped.append((table.names[row], str(error)))
                    row += 1
                if job.progress is not None:
                    job.progress(row, len(kept))
        if not kept.any():
            raise DataError(f"{source.name}: none of its {len(kept)} images can be read; the first: {skipped[0][1]}")
    columns: dict[str, NDArray[Any]] = {
        "labels.i64": table.labels,
        "splits.u8": table.splits,
        "keys.i64": table.keys,
        "hashes.u8": hashes,
        "places.i64": source.places,
    }
    with job.folder() as temporary:
        job.publish(
            temporary, rules, kept, skipped, {name: column[kept] for name, column in columns.items()},
            hashlib.blake2b(digest_size=16),
            facts={"shards": [one if is_url(one) else str(user_path(one).absolute()) for one in source.shards]},
        )  # fmt: skip
