"""Judges the responses of a JSON Lines file and shows the ones that are wrong: `judge_file.py responses.jsonl`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from still_ray import Verdict, VerifierPool, read_response


def main(path: str) -> None:
    """Prints a line for each wrong response, then how many got which verdict."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    counts: Counter[Verdict] = Counter()
    with VerifierPool(processes=2) as pool:  # killable processes: a bad answer costs at most its own timeout
        judged = [pool.submit(read_response(row["response"]), row["domain"], row["answer"]) for row in rows]
        for row, future in zip(rows, judged, strict=True):
            found = future.result()
            counts[found.verdict] += 1
            if found.verdict is not Verdict.CORRECT:
                print(f"{row['id']}: {found.verdict}: {found.extracted} for {row['answer']} ({found.detail})")
    print(", ".join(f"{verdict} {number}" for verdict, number in counts.most_common()))


if __name__ == "__main__":
    main(sys.argv[1])
