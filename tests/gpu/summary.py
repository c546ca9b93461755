"""The table of `tests/gpu/check.sh`: one line a part, from the files that it left in a folder."""

import json
import sys
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any


def main(folder: Path) -> int:
    """Print the table; 1 where a part has failed, or there is none."""
    statuses = []
    print(f"{'part':<10} {'status':<8} {'s':>4}  result")
    for path in sorted(folder.glob("*.status"), key=lambda path: path.stat().st_mtime):
        part = path.stem
        status, seconds = path.read_text().split()
        statuses.append(int(status))
        print(f"{part:<10} {words(int(status)):<8} {seconds:>4}  {result(part, folder)}")
    return int(any(statuses) or not statuses)


def words(status: int) -> str:
    """An exit status of `timeout` in a word."""
    return {0: "ok", 124: "too slow", 137: "too slow"}.get(status, "FAILED")


def result(part: str, folder: Path) -> str:
    """What a part found, in a few words; the last line of its errors where it has no result."""
    try:
        if part == "tests":
            return (folder / "tests.out").read_text().strip().splitlines()[-1].strip("= ")
        if part.startswith("search"):
            return searched(folder / "studies" / part.replace("search", "gpu"))
        return READERS[part](json.loads((folder / f"{part}.out").read_text()))
    except (OSError, ValueError, KeyError, IndexError):
        lines = (folder / f"{part}.err").read_text().strip().splitlines()
        return lines[-1][:100] if lines else "no result"


def doctor(found: dict[str, Any]) -> str:
    """The checks, and the GPU's line."""
    gpu = next((f["value"] for f in found["findings"] if f["topic"].startswith("cuda:")), "no GPU")
    checks = "; ".join(f"{c['name']} {'ok' if c['passed'] else 'FAILED'}: {c['result']}" for c in found["checks"])
    return f"{gpu}; {checks}"


def train(found: dict[str, Any]) -> str:
    """The gain over the fastest of PyTorch's variants."""
    return f"geomean {found['geomean']:.2f}, min {found['min']:.2f} over {len(found['rows'])} networks"


def latency(found: dict[str, Any]) -> str:
    """How far two measurements of a network differ."""
    percent = [100 * (row["ratio"] - 1) for row in found["rows"]]
    return f"two measurements differ by {median(percent):.1f} % (median), {max(percent):.1f} % (most)"


def searched(folder: Path) -> str:
    """Trials an hour, and the seconds of a trial by part."""
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    done = [trial for trial in trials if trial.get("spent")]
    if not done:
        return f"no trial ended; {len(trials)} began"
    spent = {part: median(trial["spent"][part] for trial in done) for part in done[0]["spent"]}
    began = [datetime.fromisoformat(trial["started"]).timestamp() for trial in done]
    first, last = min(began), max(at + trial["wall_s"] for at, trial in zip(began, done, strict=True))
    parts = ", ".join(f"{part.removesuffix('_s')} {seconds:.1f}" for part, seconds in spent.items())
    return f"{len(done)} trials, {3600 * len(done) / (last - first):.0f} an hour; median seconds: {parts}"


READERS = {"doctor": doctor, "train": train, "latency": latency}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
