"""Run MindSpore's Ascend backend on a CPU with emulated CANN libraries.

With these libraries first on the loader path, `device_target: Ascend` runs without an NPU: graph, slices,
communication, optimizer, data feeding and checkpoints are those of a real device; only kernels, drivers and the network
are emulated. It cannot be used to measure speed.
"""
