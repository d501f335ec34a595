"""Measure the conversion and the merging of 2 GB checkpoints against copying the files: speed and peak memory.

    python benchmarks/weights.py [--folder /a/disk/with/16GB] [--gb 2]

Creates a random Llama in bfloat16 with four shards, copies the files, converts them to MindFormers and back, compares
the result bit by bit, merges the model with another one by every method, and prints the ratios. Every step runs in its
own process; files are dropped from the page cache if possible.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import read_config, read_sizes
from ascend_cpt.weights.compare import compare_folders
from ascend_cpt.weights.convert import Options, convert_to_hf, convert_to_mindformers
from ascend_cpt.weights.folder_writer import create_folder, name_hf_file, write_config, write_shards
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.merge.merge import Merge, MergeOptions
from ascend_cpt.weights.merge.methods import LINEAR, METHODS, SLERP
from ascend_cpt.weights.merge.recipe import make_recipe
from ascend_cpt.weights.mindformers_folder import MindFormersFolder
from ascend_cpt.weights.safetensors_file import TensorInfo

NUM_SHARDS = 4
MIN_SPEED_RATIO, MAX_PEAK_GB = 0.5, 1.0


def make_model(target: Path, size_gb: float, seed: int) -> None:
    """Write a random Llama model of about this size, with layers half as wide as in Llama 3 8B."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 7168,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }
    layer_bytes, rest_bytes = (count_bytes({**config, "num_hidden_layers": layers}) for layers in (2, 1))
    layer_bytes -= rest_bytes
    config["num_hidden_layers"] = max(1, round((size_gb * 1e9 - rest_bytes) / layer_bytes) + 1)
    rng = np.random.default_rng(seed)
    shapes = list_hf_shapes(read_sizes(config))
    infos = [TensorInfo(name=name, dtype="BF16", shape=shape) for name, shape in shapes.items()]
    tensors = ((name, rng.integers(0, 0x3F80, shape, dtype=np.uint16)) for name, shape in shapes.items())
    with create_folder(target) as folder:
        max_shard_bytes = int(size_gb * 1e9 / NUM_SHARDS)
        write_shards(folder, infos, tensors, name_file=name_hf_file, max_shard_bytes=max_shard_bytes)
        write_config(folder, config, "bfloat16")


def count_bytes(config: dict[str, object]) -> int:
    """Return a model's size in bfloat16."""
    return sum(2 * int(np.prod(shape)) for shape in list_hf_shapes(read_sizes(config)).values())


def copy(source: Path, target: Path) -> None:
    """Copy a folder's files and sync the copies, as the conversion does."""
    shutil.copytree(source, target)
    for path in target.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def to_mindformers(source: Path, target: Path) -> None:
    """Convert a Hugging Face folder."""
    convert_to_mindformers(HfFolder(source), target, Options(max_shard_bytes=500_000_000))


def to_hf(source: Path, target: Path) -> None:
    """Convert the MindFormers folder back."""
    options = Options(max_shard_bytes=500_000_000)
    convert_to_hf(MindFormersFolder(source), read_config(source), target, options)


def merge(method: str, source: Path, target: Path) -> None:
    """Merge a Hugging Face folder with the other model beside it."""
    other = source.with_name(OTHER_NAME)
    if method == LINEAR:
        recipe = make_recipe(method, [f"{source}=0.3", f"{other}=0.7"], base=None, t=None, normalize=None)
    else:
        recipe = make_recipe(method, [str(other)], base=source, t="0.5" if method == SLERP else None, normalize=None)
    Merge(recipe, like=source, options=MergeOptions(max_shard_bytes=500_000_000)).write(recipe.at({}), target)


OTHER_NAME = "other"
STEPS: dict[str, Callable[[Path, Path], None]] = {
    "copy": copy,
    "to-mindformers": to_mindformers,
    "to-hf": to_hf,
    **{method: partial(merge, method) for method in METHODS},
}


def measure(step: str, source: Path, target: Path) -> tuple[float, float]:
    """Run a step in its own process. Return its time in seconds (without Python startup) and peak memory in GB."""
    for path in source.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    command = [sys.executable, __file__, "--step", step, str(source), str(target)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(output[0]), float(output[1])


def run_step(step: str, source: Path, target: Path) -> None:
    """Run a step and print its time and the peak memory of this process."""
    begin_s = time.perf_counter()
    STEPS[step](source, target)
    seconds = time.perf_counter() - begin_s
    # Not getrusage, whose peak is inherited from the parent process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak_kb,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(seconds, peak_kb * 1024 / 1e9)


def main() -> int:
    """Print a line per step. The exit code is 0 if speed and memory are within the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="working folder [a temporary folder]")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the checkpoint [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions, of which the fastest counts [%(default)s]")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args.step[0], Path(args.step[1]), Path(args.step[2]))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        return compare_steps(Path(work), args.gb, args.repeats)


def compare_steps(work: Path, size_gb: float, num_repeats: int) -> int:
    """Measure all steps alternately on the same files, and compare them."""
    model = work / "model"
    make_model(model, size_gb, 0)
    make_model(work / OTHER_NAME, size_gb, 1)
    total_gb = sum(path.stat().st_size for path in model.glob("*.safetensors")) / 1e9
    sources = {**dict.fromkeys(STEPS, model), "to-hf": work / "to-mindformers"}
    best_s = dict.fromkeys(STEPS, float("inf"))
    peak_gb = dict.fromkeys(STEPS, 0.0)
    for _ in range(num_repeats):
        for step, source in sources.items():
            shutil.rmtree(work / step, ignore_errors=True)
            seconds, peak = measure(step, source, work / step)
            best_s[step], peak_gb[step] = min(best_s[step], seconds), max(peak_gb[step], peak)
    reports = compare_folders(HfFolder(model), HfFolder(work / "to-hf"))
    is_equal = all(report.num_equal == report.num_tensors for report in reports)
    print(f"{total_gb:.2f} GB, fastest of {num_repeats}")
    is_good = is_equal
    for step, seconds in best_s.items():
        ratio = best_s["copy"] / seconds
        speed = f"{seconds:6.2f} s  {total_gb / seconds:5.2f} GB/s  {ratio:5.2f} x copy"
        print(f"  {step:15} {speed}  peak {peak_gb[step]:.2f} GB")
        # A merge reads two models.
        is_good &= (step in METHODS or ratio >= MIN_SPEED_RATIO) and peak_gb[step] < MAX_PEAK_GB
    print(f"round trip: {'bit-equal' if is_equal else 'NOT EQUAL'}")
    print(f"limits ({MIN_SPEED_RATIO} x copy, {MAX_PEAK_GB} GB): {'met' if is_good else 'NOT MET'}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
