"""Reads a log in the Test Anything Protocol on stdin and prints {test id: "passed" | "failed"} as JSON.

Skipped and to-do tests are left out. A subtest is named through the tests that hold it, as node and prove announce them.
Invariant: a name that failed once has failed, and a test that the log does not name is in no result.
"""

import json
import re
import sys

LINE = re.compile(r"(not ok|ok)(?: (\d+))?(?: (.*))?")
ANNOUNCED = "# Subtest: "
DIRECTIVE = re.compile(r"(?:^|(?<=\s))#\s{0,4}(?:skip|todo)\b", re.IGNORECASE)
MAX_ID = 4096


def parse(log):
    outcomes, holders, block = {}, [], None
    for raw in log.split("\n"):
        line = raw.rstrip().lstrip(" ")
        indent = len(raw) - len(raw.lstrip(" "))
        if block is not None:  # details of the test before, where an error's message may look like a result
            block = None if line == "..." and indent == block else block
            continue
        if line == "---":
            block = indent
        elif line.startswith(ANNOUNCED):
            holders = [(depth, name) for depth, name in holders if depth < indent] + [(indent, line[len(ANNOUNCED) :])]
        else:
            found = LINE.fullmatch(line)
            if not found:
                continue
            directive = DIRECTIVE.search(found[3] or "")
            if directive:
                continue
            name = (found[3] or "").removeprefix("- ").strip() or f"test {found[2] or len(outcomes) + 1}"
            name = " > ".join([holder for depth, holder in holders if depth < indent] + [name])
            failed = found[1] != "ok" or outcomes.get(name) == "failed"
            outcomes[name] = "failed" if failed else "passed"
    return {name: outcome for name, outcome in sorted(outcomes.items()) if len(name) <= MAX_ID and name.isprintable()}


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    json.dump(parse(text), sys.stdout)
