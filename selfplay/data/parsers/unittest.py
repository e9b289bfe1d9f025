"""Reads the log of `unittest` in verbose form, as Django's runtests.py prints it, and prints {test id: "passed" | "failed"} as JSON.

An id is what stands before ` ... `: `test_x (module.Class)`, or the first line of the test's docstring. Skipped tests and expected
failures are left out. Invariant: a name that failed once has failed.
"""

import json
import re
import sys

RESULT = re.compile(r"(.+?) \.\.\. +(ok|OK|FAIL|ERROR)")
HEADING = re.compile(r"(?:FAIL|ERROR): (\S+ \(\S+\))(?: .*)?")
MAX_ID = 4096


def parse(log):
    outcomes, begun = {}, ""
    for raw in log.split("\n"):
        line = raw.strip()
        found, heading = RESULT.fullmatch(line), HEADING.fullmatch(line)
        if found:
            note(outcomes, found[1], found[2].lower() == "ok")
            begun = ""
        elif heading:
            note(outcomes, heading[1], False)
        elif " ... " in f"{line} ":  # the test prints something before its result
            begun = line.partition(" ...")[0]
        elif begun and line in ("ok", "OK", "FAIL", "ERROR"):
            note(outcomes, begun, line.lower() == "ok")
            begun = ""
    return {name: outcome for name, outcome in sorted(outcomes.items()) if len(name) <= MAX_ID and name.isprintable()}


def note(outcomes, name, passed):
    outcomes[name] = "passed" if passed and outcomes.get(name) != "failed" else "failed"


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    json.dump(parse(text), sys.stdout)
