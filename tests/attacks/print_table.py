"""Prints a table of all hostile peers and their outcomes: `python -m tests.attacks.print_table`.

The coordinator runs in this process, with two nodes in an attempt, which must not notice anything.
"""

from __future__ import annotations

import sys
import time

import pytest

from tests.attacks.insiders import INSIDERS
from tests.attacks.outsiders import OUTSIDERS
from tests.attacks.test_hub import job as make_job


def main() -> int:
    failures = 0
    with pytest.MonkeyPatch.context():
        generator = make_job.__wrapped__()
        job = next(generator)
        print("| peer | knows the secret | outcome | as expected | ms |\n| --- | --- | --- | --- | --- |")
        for known, attacks in (("no", OUTSIDERS), ("yes", INSIDERS)):
            for name, (attack, expected) in attacks.items():
                start_s = time.perf_counter()
                outcome = attack(job.target)
                took_ms = 1000 * (time.perf_counter() - start_s)
                job.assert_undisturbed()
                failures += outcome != expected
                print(f"| {name} | {known} | {outcome} | {'yes' if outcome == expected else 'NO'} | {took_ms:.0f} |")
        next(generator, None)
    print(f"{len(OUTSIDERS) + len(INSIDERS)} peers, {failures} with another outcome; the job ended with code 0")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
