"""What MindFormers' mcore models need to train on a CPU, where MindSpore has no kernel for their Ascend operators."""

from __future__ import annotations

from ascend_cpt.backend.cpu.install import install_cpu_kernels, is_installed

__all__ = ["install_cpu_kernels", "is_installed"]
