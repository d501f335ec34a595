"""The machines for which plans can be made."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_cpt.devices import PEAK_FLOPS
from ascend_cpt.errors import ConfigError
from ascend_cpt.plan.speed.efficiency import Efficiency, ErrorBand

GIGA = 10**9
TERA = 10**12

# Fitted by benchmarks/plan_fit.py to the figures marked in benchmarks/plan_figures.yaml; see docs/planning.md. The two
# frameworks share the hardware parameters. Plans use the MindFormers parameters.
EFFICIENCIES = {
    "MindFormers": Efficiency(
        matmul=0.770,
        attention=0.299,
        exchange=0.649,
        activation_passes=3.41,
        layer_s=0.957e-3,
        step_s=0.0303,
        data_hidden=0.595,
        tensor_hidden=0.379,
    ),
    "MindSpeed-LLM": Efficiency(
        matmul=0.770,
        attention=0.299,
        exchange=0.649,
        activation_passes=5.77,
        layer_s=0.501e-3,
        step_s=0.0409,
        data_hidden=0.595,
        tensor_hidden=0.379,
    ),
}
PUBLISHED = EFFICIENCIES["MindFormers"]
# Errors on figures from families to which the model was not fitted.
PUBLISHED_BAND = ErrorBand(median=0.08, high=0.19, num_figures=21, source="published, held-out")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An accelerator type and its interconnect. Rates are per device."""

    name: str
    chip: str
    memory_bytes_per_s: float = 1.6 * TERA
    node_bytes_per_s: float = 7 * 28 * GIGA
    """To all other devices of the node, one direction: seven HCCS links."""
    network_bytes_per_s: float = 25 * GIGA
    """To devices of other nodes, one direction: 200 Gb/s."""
    host_bytes_per_s: float = 20 * GIGA
    """To the host's memory: PCIe 4.0 × 16, shared by reading and writing (an assumption)."""
    devices_per_node: int = 8
    efficiency: Efficiency = PUBLISHED
    band: ErrorBand = PUBLISHED_BAND

    @property
    def peak_flops(self) -> float:
        """Dense BF16 operations per second of the matrix units."""
        return PEAK_FLOPS[self.chip]


# MindFormers' model cards have figures for both. The same configuration is 1.15 to 1.2 times as fast on the second.
MACHINES = {
    "910B": Machine(name="Atlas 800T A2", chip="Ascend910B3"),
    "910B-pod": Machine(name="Atlas 900 A2 PoDc", chip="Ascend910B2"),
}


def find_machine(name: str) -> Machine:
    """Return the machine with this device name.

    Raises:
        ConfigError: for a name that is not in the table.
    """
    if name not in MACHINES:
        raise ConfigError(f"--device {name}: unknown; choose one of {', '.join(MACHINES)}")
    return MACHINES[name]
