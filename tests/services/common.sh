# Where the services of the integration tests live, and how their processes are found again.
# Sourced by up.sh, down.sh and slurm.sh.

# Everything (settings, data, logs, pid files) is below one folder, so one folder is all there is to remove.
SERVICES=${GEOPATCH_SERVICES:-${TMPDIR:-/tmp}/geopatch-services}
CONF=$SERVICES/ceph.conf
DAEMONS=(mon.a osd.0 client.rgw)  # in the order in which they start

say() { printf 'services: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# install_missing COMMAND=PACKAGE...: install, with apt, packages whose command is not there.
install_missing() {
  local missing=() pair
  for pair in "$@"; do command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null ||
    die "${missing[*]}: not installed, and there is no apt-get here: install them, or run only: pytest -m slow"
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  timeout 300 apt-get update -qq >/dev/null || die "apt-get update failed: is there a network, and a mirror?"
  # A machine with systemd would start daemons of packages: not those we want.
  RUNLEVEL=1 timeout 600 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    die "apt-get could not install ${missing[*]}: its messages are above"
}

# pid_of NAME: the pid of a live daemon of ours; nothing when there is none.  A pid file outlives its process, and a
# pid is given away again: only a process that was started with our settings is ours.
pid_of() {
  local pid
  pid=$(cat "$SERVICES/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$CONF" && printf '%s\n' "$pid"
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

gone() { ! pid_of "$1"; }
