"""Raw text to packed datasets: readers, handlers, tokenizers, packing, MindRecord, manifest, pipeline."""
