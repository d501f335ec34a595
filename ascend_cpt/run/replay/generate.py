"""Writes replay text: generates it in resumable parts, or reads it from vLLM's files, and filters it."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.data.texts import TextInput, iter_texts
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.files import write_text
from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import ModelSizes, read_attention_window, read_config, read_sizes
from ascend_cpt.monitor.sinks import format_duration
from ascend_cpt.run.replay.filters import ReplayFilter
from ascend_cpt.run.replay.sampling import Sampling, sample_batch
from ascend_cpt.run.trained_model import open_trained
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.forward import Floats
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder
from ascend_cpt.weights.mapping import iterate_to_hf

_SETTINGS_NAME = "settings.json"


@dataclass(frozen=True, kw_only=True)
class ReplayOrder:
    """What to generate."""

    model: Path
    tokenizer: Path
    tokenizer_type: str
    num_texts: int
    batch_size: int
    sampling: Sampling
    prompts: tuple[str, ...] = ()
    """Files whose texts begin the generated ones; empty: only the document boundary."""
    json_key: str = "text"
    prompt_tokens: int = 16
    """Number of tokens of each prompt."""


class Generator:
    """Texts of a base model.

    Raises:
        CheckpointError: the model is missing or damaged.
        DataError: the tokenizer or the prompts cannot be used.
    """

    def __init__(self, order: ReplayOrder) -> None:
        self._order = order
        self._sizes, self._tensors, config = load_tensors(order.model)
        longest = min(
            config.get("max_position_embeddings") or order.sampling.max_tokens,
            read_attention_window(config) or order.sampling.max_tokens,
        )
        if order.sampling.max_tokens > longest:
            raise DataError(f"--max-tokens {order.sampling.max_tokens}: the model can use at most {longest}; lower it")
        file = open_tokenizer(order.tokenizer_type, order.tokenizer)
        self._info, self._engine = file.info, make_reference_engine(file)
        if self._info.vocab_size > self._sizes.vocab_size:
            raise DataError(
                f"{order.tokenizer}: has {self._info.vocab_size} entries, but the model's vocab_size is "
                f"{self._sizes.vocab_size}; give the tokenizer that the model was trained with"
            )
        self._prompts = self._read_prompts()

    def generate(self, first: int, stop: int) -> list[str]:
        """Return the texts with indices `first` to `stop` (exclusive)."""
        tokens = sample_batch(
            self._sizes,
            self._tensors.__getitem__,
            [self._prompts[index % len(self._prompts)] for index in range(first, stop)],
            first_index=first,
            sampling=self._order.sampling,
            stop_id=self._info.eod_id,
        )
        return [self._engine.decode(one) for one in tokens]

    def _read_prompts(self) -> list[list[int]]:
        order, start = self._order, self._info.prefix_id
        if not order.prompts:
            return [[start]]
        texts = iter_texts(TextInput(paths=order.prompts, key=order.json_key))
        chosen = list(itertools.islice((text for text in texts if text.strip()), order.num_texts))
        if not chosen:
            raise DataError(f"--prompts {order.prompts[0]}: contains no text")
        found = []
        for text in chosen:
            # Only the beginning of a text is encoded: a token has at least one character, except for rare bytes.
            ids = self._engine.encode_batch([text[: order.prompt_tokens * 32]]).ids
            found.append([start, *map(int, ids[: order.prompt_tokens])])
        return found


def load_tensors(path: Path) -> tuple[ModelSizes, dict[str, Floats], Mapping[str, Any]]:
    """Return the sizes, all tensors (float32, by Hugging Face name) and the configuration of a run or a folder.

    Raises:
        CheckpointError: the model is missing or damaged.
    """
    if is_hf_folder(path):
        folder = HfFolder(path)
        folder.check()
        names = list_hf_shapes(folder.sizes)
        tensors = {name: to_float32(folder.read(name), folder.tensors[name].dtype) for name in names}
        return folder.sizes, tensors, read_config(path)
    trained = open_trained(path)
    sizes = read_sizes(dict(trained.config))
    source = trained.source

    def read(name: str) -> Floats:
        return to_float32(source.read(name), source.tensors[name].dtype)

    return sizes, dict(iterate_to_hf(sizes, read)), trained.config


def write_replay(
    target: Path, texts: Iterable[str | None], kept_by: ReplayFilter, *, settings: dict[str, Any]
) -> dict[str, Any]:
    """Filter texts and write them to `target`. Return and write the counts (`<target>.counts.json`).

    Args:
        target: The JSONL file, with one `{"text": ...}` per line.
        texts: The texts; None counts as failed.
        kept_by: The filter.
        settings: What the texts come from, for the record.
    """
    num_failed = num_chars = 0

    def write() -> Iterator[str]:
        nonlocal num_failed, num_chars
        for text in texts:
            if text is None:
                num_failed += 1
            elif kept_by.keeps(text):
                num_chars += len(text)
                yield json.dumps({"text": text.strip()}, ensure_ascii=False) + "\n"

    write_text(target, write())
    record = {**kept_by.counts, "failed": num_failed, "characters": num_chars, "settings": settings}
    write_text(target.with_name(f"{target.name}.counts.json"), json.dumps(record, indent=1, default=str) + "\n")
    return record


def generate_parts(order: ReplayOrder, folder: Path, report: Callable[[str], None]) -> Iterator[str]:
    """Yield all texts, generating the parts that are missing in `folder`. Each part is one batch.

    Raises:
        ConfigError: the folder has parts of other settings.
    """
    settings = json.loads(json.dumps({**asdict(order), "model_files": _list_files(order.model)}, default=str))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _SETTINGS_NAME
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ConfigError(
            f"{folder}: has parts generated with other settings; repeat the command that started them, give another "
            "OUTPUT, or remove this folder"
        )
    write_text(path, json.dumps(settings, indent=1) + "\n")
    starts = range(0, order.num_texts, order.batch_size)
    parts = [folder / f"{start:08d}.json" for start in starts]
    missing = [number for number, part in enumerate(parts) if not part.is_file()]
    if missing:
        if len(missing) < len(parts):
            report(f"continuing: {len(parts) - len(missing)} of {len(parts)} batches are in {folder}")
        generator, begin_s = Generator(order), time.monotonic()
        for count, number in enumerate(missing, start=1):
            start = starts[number]
            texts = generator.generate(start, min(start + order.batch_size, order.num_texts))
            write_text(parts[number], json.dumps(texts, ensure_ascii=False))
            left_s = (time.monotonic() - begin_s) / count * (len(missing) - count)
            report(f"batch {number + 1} of {len(parts)}: {len(texts)} texts; about {format_duration(left_s)} left")
    for part in parts:
        yield from json.loads(part.read_text(encoding="utf-8"))


def remove_parts(folder: Path) -> None:
    """Remove the parts once the text is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _list_files(model: Path) -> dict[str, list[int]]:
    """Return name → size and time of modification (ns) of the model's files."""
    found = sorted(path for path in model.rglob("*.safetensors") if path.is_file())
    return {str(path.relative_to(model)): [path.stat().st_size, path.stat().st_mtime_ns] for path in found}


def chain(readers: Sequence[Iterable[str | None]]) -> Iterator[str | None]:
    """Yield the texts of several files."""
    return itertools.chain.from_iterable(readers)
