"""The only room that imports mindformers: models, CPU kernels, compile, dataset loader, callbacks, trainer."""
