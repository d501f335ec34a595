"""The checked-in table of MindFormers' keys matches the installed MindFormers."""

from __future__ import annotations

import json

from ascend_cpt.backend.mindformers_keys import KEY_TABLE_PATH, collect_key_table


def test_key_table_is_up_to_date() -> None:
    checked_in = json.loads(KEY_TABLE_PATH.read_text(encoding="utf-8"))
    assert checked_in == collect_key_table(), "run `python -m ascend_cpt.backend.mindformers_keys` and commit the file"
