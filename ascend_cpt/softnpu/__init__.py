"""MindSpore's Ascend backend executed on a CPU: emulations of the CANN libraries that it loads.

A process that finds these libraries first runs `device_target: Ascend` on a machine without an NPU: graph, slices,
communication, optimizer, data feeding and checkpoints are those of a real device; only kernels, drivers and the network
are emulated. Nothing here measures speed.
"""
