#!/usr/bin/env bash
# Runs the tests that need services, one at a time, and beside them those that are only slow: the former mostly wait,
# the latter compute. What the latter print comes last. Services are ended at the end, whatever happens.
#
#   bash tests/services/run.sh python -m pytest [ARGUMENTS]
set -uo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
log=$(mktemp) || exit 2
slow=""
finish() {
  [ -z "$slow" ] || kill -INT "$slow" 2>/dev/null
  bash "$here/down.sh"
  rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT TERM

"$@" -m "(slow or deploy) and not integration" >"$log" 2>&1 &
slow=$!
"$@" -m integration
first=$?
wait "$slow"
second=$?
slow=""
cat "$log"

# pytest exits 5 when it collected nothing: fine in one of the two, not in both.
if [ "$first" -eq 5 ]; then exit "$second"; fi
if [ "$second" -eq 5 ]; then exit "$first"; fi
exit $((first != 0 ? first : second))
