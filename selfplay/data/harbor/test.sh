#!/bin/bash
# Brings back the whole tests, runs them, and writes the reward: 1 if all that must pass do, else 0.
HERE=$(cd "$(dirname "$0")" && pwd)
REWARD_FILE=${REWARD_FILE:-/logs/verifier/reward.txt}
mkdir -p "$(dirname "$REWARD_FILE")"
echo 0 > "$REWARD_FILE"
cd @WORKSPACE@ || exit 1
# The test files as the image had them, whatever was done to them, then the change that makes them whole.
git apply --numstat -z "$HERE/spec.diff" | cut -z -f3 | while IFS= read -r -d '' path; do
    git cat-file -e "start:$path" 2>/dev/null && git checkout -q start -- "$path" || rm -rf -- "$path"
done
git apply --whitespace=nowarn "$HERE/spec.diff" || exit 1
bash "$HERE/test_script.sh" > /tmp/tests.log 2>&1
python3 -I "$HERE/test_parser.py" < /tmp/tests.log > /tmp/tests-found.json || exit 1
python3 -I "$HERE/grade.py" "$HERE/tests.json" /tmp/tests-found.json > "$REWARD_FILE"
