#!/usr/bin/env bash
# A real Slurm for the integration tests: a controller and two virtual nodes on this machine, all on loopback, all below
# one folder.  Installs what is missing with apt, so it needs root on Debian or Ubuntu.
#
#   bash tests/services/slurm.sh up       prints the file that tests/services/slurm.py reads; about 3 s, 0.2 s when up
#   bash tests/services/slurm.sh down
#   bash tests/services/slurm.sh node n2  starts one node (again)
#
# Jobs are kept below their --mem by the memory cgroup where this machine has one that can be written (the tests of
# what happens to a job above it skip elsewhere).
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/common.sh"
SLURM=$SERVICES-slurm
export SLURM_CONF=$SLURM/slurm.conf
MUNGE_SOCKET=$SLURM/munge/socket
NODES=(n1 n2)
MADE_BY=$(cat "$HERE/slurm.sh" "$HERE/slurm.conf" "$HERE/common.sh" | sha256sum | cut -c 1-16)

# our PATTERN: pids of processes that were started with our folder among their arguments, or in their environment.
ours() {
  local pid
  for pid in $(pgrep -x "$1"); do
    { tr '\0' '\n' <"/proc/$pid/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF"; } 2>/dev/null && printf '%s\n' "$pid"
  done
}

# Whether jobs can be kept below their memory: the memory controller of cgroup v1, that we may write to.
has_memory_cgroup() { [ -w /sys/fs/cgroup/memory/cgroup.procs ] && [ -w /sys/fs/cgroup/freezer/cgroup.procs ]; }

write_settings() {
  local ctld=$1 track=linuxproc task=none gather=none
  if has_memory_cgroup; then track=cgroup task=cgroup gather=cgroup; fi
  sed -e "s|@DIR@|$SLURM|g" -e "s|@HOST@|$(hostname -s)|g" -e "s|@PORT@|$ctld|g" \
    -e "s|@NODES@|$((ctld + 1))-$((ctld + 2))|g" -e "s|@TRACK@|$track|g" -e "s|@TASK@|$task|g" \
    -e "s|@GATHER@|$gather|g" "$HERE/slurm.conf" >"$SLURM_CONF"
  cat >"$SLURM/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
END
}

background() {
  setsid "$@" </dev/null >>"$SLURM/log/start.log" 2>&1 &
}

start_munge() {
  # A key of our own, and a socket of our own: a munge that serves this machine is not disturbed.
  mkdir -m 700 "$SLURM/munge.key.d"
  dd if=/dev/urandom of="$SLURM/munge.key.d/key" bs=128 count=1 status=none
  chmod 600 "$SLURM/munge.key.d/key"
  mkdir -m 755 "$SLURM/munge"
  chown munge:munge "$SLURM/munge" "$SLURM/munge.key.d" "$SLURM/munge.key.d/key"
  background runuser -u munge -- /usr/sbin/munged --foreground --force --socket="$MUNGE_SOCKET" \
    --key-file="$SLURM/munge.key.d/key" --pid-file="$SLURM/munge/pid" --seed-file="$SLURM/munge/seed" \
    --log-file="$SLURM/munge/log"
  wait_for 20 test -S "$MUNGE_SOCKET" || failed munged
}

failed() {
  say "$1 does not come up; the end of its log:"
  tail -n 15 "$SLURM"/log/*.log "$SLURM/munge/log" >&2
  exit 1
}

start_node() { background slurmd -D -N "$1"; }

idle() { [ "$(timeout 5 sinfo -h -o '%T %D')" = "idle ${#NODES[@]}" ]; }
answers() { timeout 5 sinfo -h >/dev/null 2>&1; }
node_is_up() { timeout 5 sinfo -h -n "$1" -o %T | grep -qE '^(idle|mixed|allocated|completing)$'; }

stop() {
  local pid name
  for name in slurmctld slurmd slurmstepd munged; do
    for pid in $(ours "$name"); do kill -KILL "$pid" 2>/dev/null; done
  done
  # What jobs left: each runs with our settings in its environment.
  for pid in $(grep -lsxzF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ | cut -d/ -f3); do
    [ "$pid" -ne $$ ] && [ "$pid" -ne "$PPID" ] && tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" |
      grep -q '^SLURM_JOB_ID=' && kill -KILL "$pid" 2>/dev/null
  done
  rmdir_cgroups
  if [ -f "$SLURM/.geopatch-services" ]; then rm -rf "$SLURM"; fi
}

rmdir_cgroups() {
  local controller
  for controller in memory freezer; do
    find "/sys/fs/cgroup/$controller" -depth -type d -path '*/slurm*' -exec rmdir {} + 2>/dev/null
  done
  return 0
}

up() {
  [ "$(id -u)" -eq 0 ] || die "Slurm is started as root here: run as root, in a container say, or only: pytest -m slow"
  install_missing slurmctld=slurmctld slurmd=slurmd sbatch=slurm-client munged=munge
  if grep -qx "made_by=$MADE_BY" "$SLURM/slurm.env" 2>/dev/null && answers; then
    for name in "${NODES[@]}"; do node_is_up "$name" || restart_node "$name"; done
    say "Slurm is up already: $SLURM/slurm.env"
    return 0
  fi
  stop
  [ ! -e "$SLURM" ] || die "$SLURM exists and was not made by slurm.sh: remove it, or set GEOPATCH_SERVICES"
  mkdir -p "$SLURM/state" "$SLURM/log" && touch "$SLURM/.geopatch-services" || die "cannot write to $SLURM"
  for name in "${NODES[@]}"; do mkdir -p "$SLURM/spool/$name"; done
  local ctld=16817
  while (exec 3<>"/dev/tcp/127.0.0.1/$ctld") 2>/dev/null; do ctld=$((ctld + 10)); done
  write_settings "$ctld"
  start_munge
  background slurmctld -D
  for name in "${NODES[@]}"; do start_node "$name"; done
  wait_for 30 idle || failed Slurm
  printf '%s\n' "made_by=$MADE_BY" "conf=$SLURM_CONF" "memory=$(has_memory_cgroup && echo yes || echo no)" \
    >"$SLURM/slurm.env"
  say "Slurm is up after ${SECONDS} s: $SLURM/slurm.env"
}

restart_node() {
  local pid
  for pid in $(ours slurmd); do
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- "-N $1 " && kill -KILL "$pid"
  done
  start_node "$1"
  timeout 5 scontrol update nodename="$1" state=resume 2>/dev/null
  wait_for 30 node_is_up "$1" || failed "node $1"
}

case ${1:-} in
  up) up ;;
  down) stop ;;
  node) restart_node "$2" ;;
  *) die "say what to do: up, down, or node NAME" ;;
esac
