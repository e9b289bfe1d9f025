"""Prints the reward: 1 if every test that must pass has passed, else 0, with the others on stderr."""

import json
import pathlib
import sys

wanted, found = (json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:3])
failed = [name for name in wanted["fail_to_pass"] + wanted["pass_to_pass"] if found.get(name) != "passed"]
for name in failed:
    print("did not pass:", name, file=sys.stderr)
print(int(not failed))
