"""CPU replacements for the Ascend-only operators of MindFormers' mcore models."""

from __future__ import annotations

from ascend_cpt.backend.cpu.install import install_cpu_kernels, is_installed

__all__ = ["install_cpu_kernels", "is_installed"]
