"""All code that imports MindSpore or MindFormers: training, checkpoint writing, inference, models, CPU kernels."""
