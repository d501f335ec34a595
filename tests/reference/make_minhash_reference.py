"""Makes reference values with datatrove 0.10.1, in its environment (requirements/filters.txt):

    .venv-filters/bin/python tests/reference/make_minhash_reference.py
    .venv-filters/bin/python tests/reference/make_minhash_reference.py cluster TEXTS.jsonl OUT.json '{"n_grams": 5}'

The first command writes spaCy's rules for English words to ascend_cpt/data/selection/words/english.json, and
datatrove's words, clusters and contaminated documents for planted texts to tests/reference/minhash/reference.json. The
second one writes the cluster of each text of a file and the seconds that datatrove's stages take. `decontaminate TEXTS
OUT ITEMS` does the same for NGramsDecontFilter; benchmarks/near_duplicates.py runs both.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[2]
RULES = REPO_ROOT / "ascend_cpt/data/selection/words/english.json"
REFERENCE = Path(__file__).with_name("minhash") / "reference.json"
CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"n_grams": 3, "num_buckets": 20, "hashes_per_bucket": 5},
    {"hash_config": {"precision": 32}},
    {"hash_config": {"hash_fc": "sha1"}},
    {"n_grams": 2, "num_buckets": 9, "hashes_per_bucket": 13, "hash_config": {"precision": 32, "hash_fc": "sha1"}},
)
DECONTAMINATION_NGRAM = 13
SNIPPETS = (
    "Don't say dont; I'm sure they can't, cannot, cant've. It's gonna be wont!",
    "£5 and 5£, US$3.50, 10km, 12,345.6 mph, 3rd, 50% of 7 m² at 20°C — “quoted” ‘s",
    "naïve café Ångström straße İstanbul ΑΣ ﬁ ½ 한국어 ไทย हिन्दी ١٢ ５ 𞓰",
    "中文，没有空格。第二句 mixed English文字123。",
    "😀🇫🇷 ©2024 ™ a≠b x≮y \u037e \u1fef\u0301 a\u200bb \x01\x1c\x85\xa0 ಠ︵ಠ",
    "snake_case C++ http://example.com/a?b=c&d=1.5 user@example.com 1.2.3.4 ... --flag",
)


def make_texts(seed: int, num_texts: int, num_words: int) -> list[str]:
    """Return random texts, of which about half are edited copies of earlier ones."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9))) for _ in range(400)]
    vocabulary += ["don't", "dont", "3.5", "12km", "£7", "Café", "ΑΣ", "中文", "U.S.", "(a)", "😀", "they're", "cannot"]
    texts: list[list[str]] = []
    for _ in range(num_texts):
        if not texts or draw.random() < 0.5:
            words = draw.choices(vocabulary, k=max(1, int(draw.gauss(num_words, num_words / 2))))
        else:
            words = list(draw.choice(texts))
            for _ in range(int(len(words) * draw.choice((0, 0.01, 0.03, 0.05, 0.08, 0.15)))):
                words[draw.randrange(len(words))] = draw.choice(vocabulary)
        texts.append(words)
    return [draw.choice((" ", "\n", "  ")).join(words) for words in texts]


def write_rules() -> None:
    """Extract spaCy's rules for English, as far as they apply to simplified text."""
    import spacy  # type: ignore[import-not-found]
    from datatrove.utils.text import simplify_text  # type: ignore[import-not-found]
    from spacy.attrs import ORTH  # type: ignore[import-not-found]
    from spacy.lang.char_classes import UNITS  # type: ignore[import-not-found]

    tokenizer = spacy.blank("en").tokenizer
    record = {
        "source": "spaCy 3.8.18, https://github.com/explosion/spaCy, MIT License, Copyright (C) 2016-2024 ExplosionAI "
        "GmbH, 2016 spaCy GmbH, 2015 Matthew Honnibal",
        "contractions": {
            word: [part[ORTH] for part in parts]
            for word, parts in sorted(tokenizer.rules.items())
            if simplify_text(word) == word
        },
        "units": sorted(unit for unit in set(UNITS.split("|")) if unit.isalpha() and unit.isascii() and unit.islower()),
        "prefix": tokenizer.prefix_search.__self__.pattern,
        "suffix": tokenizer.suffix_search.__self__.pattern,
        "infix": tokenizer.infix_finditer.__self__.pattern,
    }
    RULES.write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")


def split_words(text: str) -> list[str]:
    """Return datatrove's words of a text."""
    from datatrove.utils.text import simplify_text
    from datatrove.utils.word_tokenizers import load_word_tokenizer  # type: ignore[import-not-found]

    words: list[str] = load_word_tokenizer("eng").word_tokenize(simplify_text(text))
    return words


def find_clusters(texts: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the cluster of each text of a JSON Lines file (-1: in none), those removed, and the seconds per stage."""
    from datatrove.pipeline.dedup import (  # type: ignore[import-not-found]
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
    from datatrove.utils.hashing import HashConfig  # type: ignore[import-not-found]

    options = {**options, "hash_config": HashConfig(**options.get("hash_config", {}))}
    config = MinhashConfig(**options)
    seconds = []

    def run(steps: list[Any], rank: int = 0, world_size: int = 1) -> list[Any]:
        begin_s = time.process_time()
        data = None
        for step in steps:
            data = step.run(data, rank, world_size)
        found = [] if data is None else list(data)
        seconds.append(time.process_time() - begin_s)
        return found

    def read() -> Any:
        return JsonlReader(str(texts.parent), glob_pattern=texts.name)

    with tempfile.TemporaryDirectory() as folder:
        parts = [f"{folder}/{name}" for name in ("signatures", "buckets", "remove")]
        signature = MinhashDedupSignature(parts[0], config)
        signature.word_tokenizer.word_tokenize("load")
        run([read(), signature])
        for bucket in range(config.num_buckets):
            run([MinhashDedupBuckets(parts[0], parts[1], config=config)], bucket, config.num_buckets)
        run([MinhashDedupCluster(parts[1], parts[2], config, save_cluster_id=True)])
        if (Path(parts[2]) / "000000.remove").exists():
            kept = run([read(), MinhashDedupFilter(parts[2], load_cluster_ids=True)])
            clusters = dict.fromkeys(range(sum(1 for _ in texts.open(encoding="utf-8"))), -1)
            pairs = (Path(parts[2]) / "000000.clusters").read_bytes()
            numbers = [int.from_bytes(pairs[k : k + 4], "little") for k in range(0, len(pairs), 4)]
            clusters.update(zip(numbers[::2], numbers[1::2], strict=True))
            removed = (Path(parts[2]) / "000000.remove").read_bytes()
            gone = sorted(int.from_bytes(removed[k : k + 4], "little") for k in range(0, len(removed), 4))
            assert len(kept) + len(gone) == len(clusters)
        else:
            clusters, gone = dict.fromkeys(range(sum(1 for _ in texts.open(encoding="utf-8"))), -1), []
    return {
        "clusters": list(clusters.values()),
        "removed": gone,
        "signature_s": seconds[0],
        "other_s": sum(seconds[1 : config.num_buckets + 2]),
    }


def find_contaminated(texts: list[str], items: list[str]) -> list[int]:
    """Return the texts that share an n-gram with an item, by the functions of NGramsDecontFilter."""
    from datatrove.utils.hashing import HashConfig, create_hash_func
    from datatrove.utils.text import ngrams

    function = create_hash_func(HashConfig())

    def hash_all(text: str) -> set[int]:
        return {function(" ".join(ngram)) for ngram in ngrams(split_words(text), DECONTAMINATION_NGRAM)}

    known = set().union(*map(hash_all, items))
    return [number for number, text in enumerate(texts) if known & hash_all(text)]


def run_decontamination(texts: Path, items: Path) -> dict[str, Any]:
    """Return the texts of a JSON Lines file that NGramsDecontFilter removes, and the seconds that it takes."""
    import numpy as np
    from datatrove.pipeline.decont.n_grams import (  # type: ignore[import-not-found]
        NGramsDecontConfig,
        NGramsDecontFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.utils.hashing import HashConfig, create_hash_func
    from datatrove.utils.text import ngrams

    function = create_hash_func(HashConfig())
    with tempfile.TemporaryDirectory() as folder:
        known = {
            function(" ".join(ngram))
            for line in items.open(encoding="utf-8")
            for ngram in ngrams(split_words(json.loads(line)["text"]), DECONTAMINATION_NGRAM)
        }
        np.array(list(known), "<u8").tofile(f"{folder}/items.index.hashes")
        step = NGramsDecontFilter(folder, NGramsDecontConfig(n_grams=DECONTAMINATION_NGRAM))
        step.load_index_hashes()
        begin_s = time.process_time()
        reader = JsonlReader(str(texts.parent), glob_pattern=texts.name)
        kept = {document.id for document in step.run(reader.run(None, 0, 1), 0, 1)}
        seconds = time.process_time() - begin_s
    count = sum(1 for _ in texts.open(encoding="utf-8"))
    removed = [number for number in range(count) if f"{texts.name}/{number}" not in kept]
    assert len(removed) + len(kept) == count, "unexpected document ids"
    return {"removed": removed, "seconds": seconds, "num_ngrams": len(known)}


def write_reference() -> None:
    """Write the words, clusters and contaminated documents of planted texts."""
    texts = [*SNIPPETS, *make_texts(0, 150, 60), ""]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text or " "}) + "\n" for text in texts), encoding="utf-8")
        results = [find_clusters(path, options) for options in CONFIGS]
    items = [" ".join(text.split()[5:25]) for text in texts[6:150:12]]
    record = {
        "source": "datatrove 0.10.1",
        "texts": texts,
        "words": [split_words(text) if text else [] for text in SNIPPETS],
        "configs": CONFIGS,
        "clusters": [result["clusters"] for result in results],
        "items": items,
        "contaminated": find_contaminated(texts, items),
    }
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(json.dumps(record, indent=0, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["cluster"]:
        found = find_clusters(Path(sys.argv[2]), json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})
        Path(sys.argv[3]).write_text(json.dumps(found), encoding="utf-8")
    elif sys.argv[1:2] == ["decontaminate"]:
        found = run_decontamination(Path(sys.argv[2]), Path(sys.argv[4]))
        Path(sys.argv[3]).write_text(json.dumps(found), encoding="utf-8")
    else:
        write_rules()
        write_reference()
