"""How much of the public interface has types that a user's type checker knows, by pyright. Run by `make typecoverage`."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST = 0.95


def main():
    command = ["-m", "pyright", "--pythonpath", sys.executable, "--verifytypes", "pyrovi", "--ignoreexternal", "--outputjson"]
    # An editable installation is out of pyright's sight; a path is not.
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(done.stdout)["typeCompleteness"]
    except (json.JSONDecodeError, KeyError):
        sys.exit(f"pyright gave no report:\n{done.stdout}{done.stderr}")
    score, counts = found["completenessScore"], found["exportedSymbolCounts"]
    print(f"{score:.1%} of {sum(counts.values()):,} public symbols have types")
    if score < LEAST or not sum(counts.values()):
        for symbol in found["symbols"]:
            if symbol["isExported"] and not symbol["isTypeKnown"]:
                print(f"{symbol['name']}: {'; '.join(said['message'] for said in symbol['diagnostics'])}")
        sys.exit(f"below {LEAST:.0%}")


if __name__ == "__main__":
    main()
