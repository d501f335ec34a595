"""run_cpt.py, which also writes every parameter that a rank loads, right after it was loaded.

The files are `<rank>.safetensors` in the folder that the variable LOADED_STATE names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ascend_cpt.cluster.job.launcher_files import run_worker
from ascend_cpt.softnpu.environment import enter


def write_loaded_state() -> None:
    """Make the loader write what it has loaded, from the parameters of the network and of the optimizer."""
    import importlib

    from safetensors.numpy import save_file

    from ascend_cpt.backend.checkpointing import complete_load

    require = complete_load.require_optimizer_state

    def require_and_write() -> None:
        require()
        module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
        load = module.load_parameters

        def load_and_write(network: Any, state_dict: Any, optimizer: Any = None, *rest: Any, **settings: Any) -> None:
            names = set(state_dict)
            load(network, state_dict, optimizer, *rest, **settings)
            parameters = {**optimizer.parameters_dict(), **network.parameters_dict()}
            loaded = {name: value.asnumpy() for name, value in parameters.items() if name in names}
            save_file(loaded, Path(os.environ["LOADED_STATE"]) / f"{os.environ.get('RANK_ID', '0')}.safetensors")

        module.load_parameters = load_and_write

    complete_load.require_optimizer_state = require_and_write


def start() -> int:
    """Start like run_cpt.py."""
    enter()
    write_loaded_state()
    from ascend_cpt.train import main

    return main()


if __name__ == "__main__":
    sys.exit(run_worker(start))
