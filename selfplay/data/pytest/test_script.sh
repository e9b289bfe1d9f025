#!/bin/bash
# Runs the tests of the files named at the end and prints pytest's report; the exit status is pytest's own.
cd /testbed || exit 2
export PYTHONDONTWRITEBYTECODE=1
exec python -m pytest -rap -q --tb=short --show-capture=no --disable-warnings --color=no --no-header \
    --rootdir=. --continue-on-collection-errors -p no:cacheprovider @OPTIONS@ \
    @TEST_FILES@
