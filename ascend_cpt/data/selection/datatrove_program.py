"""Program that runs datatrove in its own environment, without this package.

It reads the job as JSON from standard input (see `datatrove_filters.filter_documents`). For each filter and for
MinHash, it writes the ids of the remaining documents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Documents = Iterator[Any]


def list_survivors(folder: Path) -> Callable[[Documents, int, int], Documents]:
    """Return a pipeline step that writes the ids of its documents, one file per task."""
    folder.mkdir(parents=True)

    def step(data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        with open(folder / f"{rank}", "w", encoding="utf-8") as file:
            for document in data:
                file.write(document.id + "\n")
                yield document

    return step


def main() -> None:
    """Run the job."""
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found]
    from datatrove.pipeline import filters as filter_steps  # type: ignore[import-not-found]
    from datatrove.pipeline.dedup import (  # type: ignore[import-not-found]
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
    from datatrove.pipeline.writers import JsonlWriter  # type: ignore[import-not-found]

    job = json.load(sys.stdin)
    scratch, survivors = Path(job["scratch"]), Path(job["survivors"])

    def run(tasks: int, *steps: Any) -> None:
        workers = min(job["workers"], tasks)
        LocalPipelineExecutor(
            list(steps), tasks, workers, skip_completed=False, logging_dir=str(scratch / "logs")
        ).run()

    steps: list[Any] = []
    for name, arguments in job["filters"]:
        steps += [getattr(filter_steps, name)(**arguments), list_survivors(survivors / name)]
    if job["minhash"] is None:
        run(job["tasks"], JsonlReader(job["text"]), *steps)
        return
    options = dict(job["minhash"])
    language = {"language": options.pop("language")} if "language" in options else {}
    config = MinhashConfig(**options)
    folders = {name: str(scratch / name) for name in ("kept", "signatures", "buckets", "remove")}
    if steps:
        # Each task reads and writes the file with its own number, so that the document order is preserved.
        run(job["tasks"], JsonlReader(job["text"]), *steps, JsonlWriter(folders["kept"], "${rank}.jsonl", None))
    source = folders["kept"] if steps else job["text"]
    run(job["tasks"], JsonlReader(source), MinhashDedupSignature(folders["signatures"], config, **language))
    run(config.num_buckets, MinhashDedupBuckets(folders["signatures"], folders["buckets"], config=config))
    run(1, MinhashDedupCluster(folders["buckets"], folders["remove"], config=config))
    last = list_survivors(survivors / "MinHash")
    run(job["tasks"], JsonlReader(source), MinhashDedupFilter(folders["remove"]), last)


if __name__ == "__main__":
    main()
