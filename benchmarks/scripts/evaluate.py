"""Accuracy of a model, greedily by vLLM and graded by math-verify; the options are those of `sample`.

python -m benchmarks.scripts.evaluate --model DIR --problems test.jsonl --prompt prompt.txt --out evaluation.jsonl
"""

from __future__ import annotations

from benchmarks.scripts.grade import is_correct
from benchmarks.scripts.sample import arguments_of, respond, write_lines

if __name__ == "__main__":
    given = arguments_of(__doc__)
    rows = [{**row, "correct": is_correct(row["response"], str(row["answer"]))} for row in respond(given)]
    write_lines(given.out, rows)
    print(f"accuracy {sum(row['correct'] for row in rows) / len(rows):.3f}")  # noqa: T201 - the script's result
