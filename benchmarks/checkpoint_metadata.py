"""What metadata.json of a distributed checkpoint costs: by MindFormers' functions, and as the suite makes it.

    python benchmarks/checkpoint_metadata.py [--num-ranks 64 512 4096] [--layers 1]

Simulated ranks of a Llama 3 70B: tensor 8, pipeline 8, the rest data parallel, whose ranks hold either replicas of the
weights and optimizer states or shards of them (parallel optimizer). The layouts have the values that MindSpore's
compiler gives; its own conversion from C++ to Python is not included, nor are collectives and the files of tensors.

Before: what each rank did at each save, and the completing rank in addition. Measured with `--layers` layers per stage
and scaled to all of them: the cost is a sum over parameters. After: all layers, once a launch, on the completing rank.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mindformers.checkpoint.metadata as mindformers_metadata
import mindformers.checkpoint.sharded_tensor as mindformers_sharded
from mindspore.parallel.strategy import _NetStrategyInfo

from ascend_cpt.backend.checkpointing.shard_map import describe_stages, render_shard_map
from ascend_cpt.files import write_text

NETWORK = SimpleNamespace(compile_phase="train")
TENSOR, STAGES, LAYERS = 8, 8, 80
HIDDEN, FFN, QKV, VOCAB = 8192, 28672, 10240, 128256
BY_ROWS, BY_COLUMNS, WHOLE = [[0], [-1]], [[-1], [0]], [[-1]]
LAYER: dict[str, tuple[tuple[int, ...], list[list[int]]]] = {
    "input_layernorm.weight": ((HIDDEN,), WHOLE),
    "pre_mlp_layernorm.weight": ((HIDDEN,), WHOLE),
    "self_attention.linear_qkv.weight": ((QKV, HIDDEN), BY_ROWS),
    "self_attention.linear_proj.weight": ((HIDDEN, HIDDEN), BY_COLUMNS),
    "mlp.linear_fc1.weight": ((2 * FFN, HIDDEN), BY_ROWS),
    "mlp.linear_fc2.weight": ((HIDDEN, FFN), BY_COLUMNS),
}


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-ranks", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--layers", type=int, default=1, metavar="N", help="layers per stage of the old way [1]")
    args = parser.parse_args()
    print(
        f"{'ranks':>5}  {'data ranks hold':15}  {'before: s a save, every rank':>28}  {'+ completing rank':>17}", end=""
    )
    print(f"  {'before: MB':>10}  {'after: s a launch':>17}  {'write: s a save':>15}  {'after: MB':>9}", flush=True)
    for num_ranks in args.num_ranks:
        for sharded in (False, True):
            every, completing, before_bytes = measure_before(num_ranks, sharded, args.layers)
            once, write, after_bytes = measure_after(num_ranks, sharded)
            print(
                f"{num_ranks:>5}  {'shards' if sharded else 'replicas':15}  {every:>28.1f}  {completing:>17.1f}", end=""
            )
            print(
                f"  {before_bytes / 1e6:>10.1f}  {once:>17.2f}  {write:>15.2f}  {after_bytes / 1e6:>9.1f}", flush=True
            )
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    return 0


def make_layouts(num_ranks: int, sharded: bool, layers_per_stage: int) -> dict[int, dict[str, Any]]:
    """Return MindSpore's layout information for each rank's parameters."""
    ranks_per_stage = num_ranks // STAGES
    layouts: dict[int, dict[str, Any]] = {}
    for stage in range(STAGES):
        ranks = list(range(stage * ranks_per_stage, (stage + 1) * ranks_per_stage))
        tensors = {
            f"decoder.layers.{stage * layers_per_stage + layer}.{name}": value
            for layer in range(layers_per_stage)
            for name, value in LAYER.items()
        }
        if layers_per_stage == LAYERS // STAGES:
            tensors.update(list_ends(stage))
        infos = {
            prefix + name: SimpleNamespace(
                dev_matrix=[ranks_per_stage // TENSOR, 1, TENSOR],
                tensor_map=tensor_map,
                rank_list=ranks,
                opt_weight_shard_size=-1 if sharded else 0,
                tensor_shape=list(shape),
                tensor_type="Float32",
            )
            for name, (shape, tensor_map) in tensors.items()
            for prefix in ("", "adam_m.", "adam_v.")
        }
        layouts.update(dict.fromkeys(ranks, infos))
    return layouts


def list_ends(stage: int) -> dict[str, tuple[tuple[int, ...], list[list[int]]]]:
    """Return a stage's parameters that belong to no layer."""
    if stage == 0:
        return {"embedding.word_embeddings.weight": ((VOCAB, HIDDEN), BY_ROWS)}
    if stage == STAGES - 1:
        return {"decoder.final_layernorm.weight": ((HIDDEN,), WHOLE), "output_layer.weight": ((VOCAB, HIDDEN), BY_ROWS)}
    return {}


def list_model_names(layouts: dict[int, dict[str, Any]]) -> dict[str, None]:
    """Return the weight names."""
    return {name: None for infos in layouts.values() for name in infos if not name.startswith("adam")}


def measure_before(num_ranks: int, sharded: bool, layers: int) -> tuple[float, float, float]:
    """Return the seconds on every rank, extra seconds on the completing rank, and bytes, scaled to all layers."""
    layouts = make_layouts(num_ranks, sharded, layers)
    handle = SimpleNamespace(
        global_network_layout=lambda: {"train": layouts}, local_network_layout=lambda: {"train": {0: layouts[0]}}
    )
    _NetStrategyInfo._get_layout_handle = staticmethod(lambda: handle)
    mindformers_sharded.get_real_group_size = lambda: num_ranks
    mindformers_metadata.get_group_size = lambda: num_ranks
    scale = LAYERS / STAGES / layers
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        metas = mindformers_sharded.get_all_sharded_tensor(NETWORK)
        middle = time.monotonic()
        files = mindformers_metadata.get_total_params_file_mapping_info(metas, "cpt", list_model_names(layouts))
        mindformers_metadata.save_metadata(metas, files, f"{folder}/metadata.json")
        end = time.monotonic()
        num_bytes = os.path.getsize(f"{folder}/metadata.json")
    return (middle - begin) * scale, (end - middle) * scale, num_bytes * scale


def measure_after(num_ranks: int, sharded: bool) -> tuple[float, float, float]:
    """Return the seconds to make the text, the seconds to write it, and the bytes, for all layers."""
    layouts = make_layouts(num_ranks, sharded, LAYERS // STAGES)
    names = list_model_names(layouts)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        stages = describe_stages(NETWORK, layouts)
        text = render_shard_map(stages, prefix="cpt", model_names=names, num_ranks=num_ranks)
        middle = time.monotonic()
        write_text(Path(folder) / "metadata.json", text)
        end = time.monotonic()
        num_bytes = os.path.getsize(f"{folder}/metadata.json")
    return middle - begin, end - middle, num_bytes


if __name__ == "__main__":
    sys.exit(main())
