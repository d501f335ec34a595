"""The training data loader, registered with MindFormers: each rank reads its own rows of the run, in order.

`SampleOrder` computes the row at each position of the run. Each of n data-parallel ranks reads a contiguous part of
every global batch, so a step's global batch contains the same rows for every n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore.dataset as ds
import numpy as np
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from ascend_cpt.data.packed.manifest import Manifest, load_manifest
from ascend_cpt.data.packed.megatron_rows import MmapRows
from ascend_cpt.data.packed.network_inputs import RowFormat
from ascend_cpt.data.packed.token_stream import check_rows
from ascend_cpt.errors import DataError
from ascend_cpt.recipe.phases import SampleOrder
from ascend_cpt.run.mindformers_yaml import LOADER_NAME

ROWS_PER_WINDOW = 2048

_errors: list[DataError] = []


class MindRecordRows:
    """Random access to the rows of a packed dataset, read in windows.

    Reading a single row of a MindRecord file is slow, but MindDataset reads all rows of a sampler in one pass.
    """

    def __init__(self, manifest: Manifest) -> None:
        # MindDataset rejects files without rows, which a shard without documents produces.
        shards = [shard for shard in manifest.shards if shard.num_rows]
        self._files = [str(manifest.folder / shard.file) for shard in shards]
        self._starts = np.cumsum([0, *(shard.num_rows for shard in shards)])
        self._row_length = manifest.row_tokens
        # In a shorter row, the last token's missing label is masked in the loss, like padding.
        self._missing = np.full((1, 1 if manifest.lacks_last_label else 0), manifest.tokenizer.pad_id, np.int32)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows at these indices, in this order, as int32 of shape (len(rows), seq_length + 1).

        Raises:
            DataError: when the files contain fewer rows than their manifest lists, or a row is damaged.
        """
        # MindDataset rejects samplers with more rows than the file, so a row repeated in two epochs is read once.
        unique, inverse = np.unique(rows, return_inverse=True)
        for path, start, stop in zip(self._files, self._starts, self._starts[1:], strict=False):
            within = unique[(unique >= start) & (unique < stop)] - start
            check_rows(Path(path), within.tolist(), self._row_length)
        dataset = ds.MindDataset(
            self._files, columns_list=["input_ids"], sampler=ds.SubsetSampler(unique.tolist()), num_parallel_workers=1
        )
        found = [item["input_ids"] for item in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]
        if len(found) != len(unique):
            raise DataError(
                f"{self._files[0]}: {len(found)} of {len(unique)} rows found; the files do not match their manifest; "
                "copy the dataset again, or pack it again"
            )
        read = np.stack(found)[inverse]
        return np.hstack((read, np.repeat(self._missing, len(read), axis=0)))


class PackedRows:
    """Random access to rows of several datasets in either format, by dataset and row index."""

    def __init__(self, manifests: Sequence[Manifest], seq_length: int) -> None:
        self._parts = [
            MmapRows(manifest, seq_length) if manifest.output_format == "mmap" else MindRecordRows(manifest)
            for manifest in manifests
        ]
        self._row_length = seq_length + 1

    def read(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return row `rows[i]` of dataset `numbers[i]` for every i, as int32 of shape (len(rows), seq_length + 1).

        Raises:
            DataError: when files contain fewer rows than their manifest lists.
        """
        found = np.empty((len(rows), self._row_length), dtype=np.int32)
        for number in np.unique(numbers):
            chosen = numbers == number
            found[chosen] = self._parts[number].read(rows[chosen])
        return found


class RunRows:
    """One rank's rows as a random-access source: item i is the i-th row that the rank reads during the run.

    With a batch ramp, items are numbered as if all steps had the size of step `ramp_step`, because MindFormers skips a
    resumed run's trained steps as if they all had the same size. Only items in steps of this size are trained on.
    """

    def __init__(
        self,
        rows: PackedRows,
        order: SampleOrder,
        *,
        rank: int,
        num_ranks: int,
        batch_size: int,
        row_format: RowFormat,
        ramp_step: int | None = None,
    ) -> None:
        self._rows, self._order, self._format = rows, order, row_format
        self._rank, self._num_ranks, self._batch_size = rank, num_ranks, batch_size
        first = 0 if ramp_step is None else ramp_step
        self._rows_per_step = order.first_position(first + 1) - order.first_position(first)
        assert self._rows_per_step % (num_ranks * batch_size) == 0 or ramp_step is None
        self._num_items = order.phases[-1].stop_step * self._rows_per_step // num_ranks
        assert self._num_items % batch_size == 0, "the run is a whole number of global batches"
        # The position in the run at which step 0 would start if all steps had this size.
        self._origin = order.first_position(first) - first * self._rows_per_step
        self._window_start, self._window = 0, np.empty((0, 0), dtype=np.int32)

    def __len__(self) -> int:
        return self._num_items

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        index = int(index)
        if index >= self._num_items:
            raise IndexError(index)  # ends a plain for loop; negative indices do not occur
        offset = index - self._window_start
        if not 0 <= offset < len(self._window):
            items = np.arange(index, min(index + ROWS_PER_WINDOW, self._num_items))
            sources, rows = self._order.locate(self.to_positions(items))
            try:
                self._window_start, self._window = index, self._rows.read(sources, rows)
            except DataError as error:
                _errors.append(error)
                raise
            offset = 0
        return self._format.make(self._window[offset], index % self._batch_size)

    def to_positions(self, items: np.ndarray) -> np.ndarray:
        """Return the run positions (int64) of this rank's items, which are its slice of every global batch."""
        batch, within = np.divmod(items, self._batch_size)
        positions = self._origin + (batch * self._num_ranks + self._rank) * self._batch_size + within
        # Items of steps with another size are skipped or prefetched, but not trained on.
        return positions if self._order.ramp is None else np.clip(positions, 0, self._order.total_rows - 1)


@contextmanager
def reporting_data_errors() -> Iterator[None]:
    """Within this block, re-raise a `RunRows` error that MindSpore has wrapped in a RuntimeError."""
    _errors.clear()
    try:
        yield
    except RuntimeError as error:
        if not _errors:
            raise
        raise _errors[0] from error


def open_manifests(paths: Sequence[str], digests: Sequence[str]) -> list[Manifest]:
    """Load the manifests at `paths` and check that they have not changed since the run was resolved.

    Raises:
        DataError: when a dataset has changed.
    """
    manifests = [load_manifest(path) for path in paths]
    for path, manifest, digest in zip(paths, manifests, digests, strict=True):
        if manifest.digest != digest:
            raise DataError(f"{path}: changed after this run was configured; start the run again")
    return manifests


@MindFormerRegister.register(MindFormerModuleType.DATASET_LOADER)
class CptPackedDataLoader:
    """The run's MindFormers data loader. Its arguments are in `train_dataset.data_loader` of the resolved YAML file."""

    def __new__(
        cls,
        manifests: list[str],
        digests: list[str],
        row_format: dict[str, Any],
        sample_order: dict[str, Any],
        column_names: list[str],
        batch_size: int,
        ramp_step: int | None = None,
        shard_id: int | None = None,
        num_shards: int | None = None,
        **_unused: object,
    ) -> ds.GeneratorDataset:
        """Return this rank's dataset. MindFormers passes the rank, the number of ranks and the batch size."""
        opened = open_manifests(manifests, digests)
        resolved = RowFormat.from_record(row_format)
        assert list(resolved.columns) == column_names
        source = RunRows(
            PackedRows(opened, resolved.seq_length),
            SampleOrder.from_record(sample_order),
            rank=shard_id or 0,
            num_ranks=num_shards or 1,
            batch_size=batch_size,
            row_format=resolved,
            ramp_step=ramp_step,
        )
        return ds.GeneratorDataset(source, column_names=column_names, shuffle=False, num_parallel_workers=1)


assert CptPackedDataLoader.__name__ == LOADER_NAME
