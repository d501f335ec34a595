"""The machines that plans can be made for."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_cpt.devices import PEAK_FLOPS
from ascend_cpt.errors import ConfigError
from ascend_cpt.plan.throughput import Efficiency

GIGA = 10**9
TERA = 10**12

# Fitted to the seven figures marked in benchmarks/plan_figures.yaml; see docs/planning.md.
PUBLISHED = Efficiency(matmul=0.835, attention=0.305, exchange=0.949, activation_passes=2.51, layer_s=1.83e-3)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A type of accelerator and its interconnect. Rates are per device."""

    name: str
    chip: str
    memory_bytes_per_s: float = 1.6 * TERA
    node_bytes_per_s: float = 7 * 28 * GIGA
    """To all other devices of the node, one direction: seven HCCS links."""
    network_bytes_per_s: float = 25 * GIGA
    """To devices of other nodes, one direction: 200 Gb/s."""
    devices_per_node: int = 8
    efficiency: Efficiency = PUBLISHED

    @property
    def peak_flops(self) -> float:
        """Dense BF16 operations of the matrix units per second."""
        return PEAK_FLOPS[self.chip]


# MindFormers' model cards have figures for both; the same configuration is 1.15 to 1.2 times as fast on the second.
MACHINES = {
    "910B": Machine(name="Atlas 800T A2", chip="Ascend910B3"),
    "910B-pod": Machine(name="Atlas 900 A2 PoDc", chip="Ascend910B2"),
}


def find_machine(name: str) -> Machine:
    """Return the machine of a device name.

    Raises:
        ConfigError: for a name that is not in the table.
    """
    if name not in MACHINES:
        raise ConfigError(f"--device {name}: unknown; choose one of {', '.join(MACHINES)}")
    return MACHINES[name]
