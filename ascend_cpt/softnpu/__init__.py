"""Runs MindSpore's Ascend backend on a CPU with emulated CANN libraries.

With these libraries first on the loader path, `device_target: Ascend` runs without an NPU. The graph, slices,
communication, optimizer, data pipeline and checkpoints are the same as on a real device. Only kernels, drivers and the
network are emulated, so speed cannot be measured.
"""
