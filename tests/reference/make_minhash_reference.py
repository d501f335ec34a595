"""Makes reference values with datatrove 0.10.1, in its environment (requirements/filters.txt):

    .venv-filters/bin/python tests/reference/make_minhash_reference.py

Writes spaCy's rules for English words to ascend_cpt/data/selection/words/english.json, and datatrove's words,
signatures and clusters of a corpus with planted near-duplicates to tests/reference/minhash/.
"""
