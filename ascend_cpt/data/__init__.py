"""Raw text to packed datasets: readers, handlers, sub-splitting, tokenizers, packing, MindRecord, manifest, pipeline."""
