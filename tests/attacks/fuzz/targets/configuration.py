"""YAML configurations, stage files, values of the command line, and the output of npu-smi."""

from __future__ import annotations

from pathlib import Path
from random import Random

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.train_stages import load_stages
from ascend_cpt.config.values import (
    format_bytes,
    format_count,
    parse_count,
    parse_float,
    parse_interval,
    parse_patience,
)
from ascend_cpt.config.yaml_file import read_yaml
from ascend_cpt.run.checks.monitoring import find_monitoring_problems
from tests.attacks.fuzz.harness import REPOSITORY, Prepared, Target
from tests.attacks.fuzz.mutate import FLOATS, NUMBERS, TEXTS, by_lines, mutate_bytes, one_of

CONFIG = b"""\
base_config: base.yaml
run_mode: train
parallel_config: {data_parallel: 1, model_parallel: 1}
model:
  model_config: {model_type: qwen3, hidden_size: 64, vocab_size: 512}
cpt:
  init_from: random
  seq_length: 256
  global_batch_size: 8
  train_tokens: 1.6M
  schedule: {preset: reuse, base_final_lr: 1e-4}
  sources:
    web: {path: data/web}
    code: {path: data/code}
  validation:
    every: 100 steps
    sets:
      held: {path: data/held, max_increase: 0.1, on_increase: stop, patience: 3 validations}
    tasks:
      arc: {path: data/arc.jsonl, kind: multiple_choice, max_items: 10}
  checkpoint: {every: 1B, keep_last: 2}
  guards: {}
"""
STAGES = b"""\
stages:
  - name: short
    config: a.yaml
    advance_when: {set: held, max_increase: 0.05}
  - name: long
    config: b.yaml
    set: {cpt.seq_length: 512, "cpt.sources.web.path": data/web512}
"""


def mutate_yaml_value(random: Random, line: bytes) -> bytes:
    """Replace the value of a key by another one."""
    key, colon, _ = line.partition(b":")
    values = (
        *NUMBERS[:-1],
        *FLOATS,
        *TEXTS,
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "~",
        "yes",
        "2001-99-99",
        "&a [*a]",
        "0o7",
    )
    value = str(random.choice(values)).encode("utf-8", "surrogatepass")
    return key + (colon or b":") + b" " + value


mutate_yaml = by_lines(one_of(mutate_bytes, mutate_yaml_value))
ONE = ParallelLayout(world_size=1, data_parallel=1)


def prepare_yaml(folder: Path) -> Prepared:
    path = folder / "config.yaml"
    (folder / "base.yaml").write_text("seed: 1\ncpt: {storage: {shared: true}}\n")

    def run(case: bytes) -> None:
        path.write_bytes(case)
        config = load_config(path, {"cpt.seq_length": 128})
        assert config.cpt.seq_length == 128
        find_monitoring_problems(config, ONE)

    return Prepared(seeds=[CONFIG], mutate=mutate_yaml, run=run)


def prepare_stages(folder: Path) -> Prepared:
    path = folder / "stages.yaml"

    def run(case: bytes) -> None:
        path.write_bytes(case)
        for stage in load_stages(path):
            assert stage.name and "/" not in stage.name

    return Prepared(seeds=[STAGES], mutate=mutate_yaml, run=run)


def prepare_any_yaml(folder: Path) -> Prepared:
    path = folder / "any.yaml"

    def run(case: bytes) -> None:
        path.write_bytes(case)
        try:
            read_yaml(path)
        except (OSError, ValueError) as error:
            assert "\n" not in str(error), "not one line"

    seeds = [b"a: &x [1, {b: 2}]\nc: *x\nd: |\n  text\n", b"- 1e-5\n- !!str 1\n- 2001-01-01\n- ? a\n", b"x: 1:30\n"]
    return Prepared(seeds=seeds, mutate=mutate_bytes, run=run)


def prepare_values(folder: Path) -> Prepared:
    """A case is an assignment of --set; its value is also read as a count, a float, an interval and a patience."""

    def run(case: bytes) -> None:
        text = case.decode("utf-8", "surrogateescape")
        value = text.partition("=")[2]
        for parse in (parse_count, parse_float, parse_interval, parse_patience):
            try:
                result = parse(value)
            except ValueError:
                continue
            if isinstance(result, int | float):
                format_count(result)
                if result == result and abs(result) < 1e300:
                    format_bytes(result)
        parse_assignments([text])

    seeds = [b"cpt.train_tokens=300B", b"a.b=1_638_400", b"x=1e-5", b"cpt.validation.every=100 steps", b"a={b: [1, 2]}"]
    return Prepared(seeds=seeds, mutate=mutate_bytes, run=run)


def prepare_shipped(folder: Path) -> Prepared:
    """Shipped configurations with changed lines; their base files are real."""
    paths = sorted((REPOSITORY / "configs").glob("*/*_tiny.yaml"))
    paths = [path for path in paths if b"\ncpt:" in path.read_bytes()]
    texts = [path.read_bytes().replace(b"../base", str(REPOSITORY / "configs/base").encode()) for path in paths]
    path = folder / "config.yaml"

    def run(case: bytes) -> None:
        path.write_bytes(case)
        find_monitoring_problems(load_config(path), ONE)

    return Prepared(seeds=texts, mutate=mutate_yaml, run=run)


TARGETS = (
    Target(name="yaml", num_cases=5_000, prepare=prepare_yaml),
    Target(name="shipped_yaml", num_cases=5_000, prepare=prepare_shipped),
    Target(name="stages", num_cases=5_000, prepare=prepare_stages),
    Target(name="any_yaml", num_cases=6_000, prepare=prepare_any_yaml),
    Target(name="values", num_cases=20_000, prepare=prepare_values),
)
