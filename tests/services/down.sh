#!/usr/bin/env bash
# Stops what up.sh started, and removes its folder.  Safe to run at any time, also when nothing runs.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bash "$(dirname "${BASH_SOURCE[0]}")/slurm.sh" down

# Gateway first: it would wait for the others.  Nothing here is worth a clean shutdown.
for ((i = ${#DAEMONS[@]} - 1; i >= 0; i--)); do
  name=${DAEMONS[i]}
  pid=$(pid_of "$name") || continue
  kill -KILL "$pid"
  wait_for 20 gone "$name" || die "$name (pid $pid) does not end: kill it by hand, then remove $SERVICES"
done

# Only a folder that up.sh made is removed, whatever the variable says.
if [ -f "$SERVICES/.geopatch-services" ]; then
  rm -rf "$SERVICES"
fi
