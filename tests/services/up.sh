#!/usr/bin/env bash
# Starts what the integration tests talk to: Ceph (one monitor, one OSD that keeps objects in memory, one S3 gateway)
# and Slurm (slurm.sh: a controller, two nodes), all on loopback, all below two folders.  Installs what is missing with
# apt, so it needs root on Debian or Ubuntu.
#
#   bash tests/services/up.sh      prints the file that tests/services/ceph.py reads; about 15 s, 1 s when it runs already
#   bash tests/services/down.sh
#
# Safe to run twice and after a crash: what runs and answers is kept, anything else is stopped and started afresh.
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/common.sh"
ENV_FILE=$SERVICES/services.env
MADE_BY=$(cat "$HERE/up.sh" "$HERE/common.sh" | sha256sum | cut -c 1-16)

# free_port FIRST: the first port from there on at which nobody answers.
free_port() {
  local port=$1
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  printf '%s\n' "$port"
}

# What `auth = none` needs: the three mode lines, else the gateway hangs.  crush chooseleaf 0: one host is enough.
write_settings() {
  local fsid=$1 mon=$2 gateway=$3
  cat >"$CONF" <<EOF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon/0
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
auth supported = none
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
run dir = $SERVICES
admin socket = $SERVICES/\$name.asok
pid file = $SERVICES/\$name.pid
log file = $SERVICES/\$name.log
[mon]
mon data = $SERVICES/mon.\$id
mon data avail crit = 1
mon data avail warn = 2
[osd]
osd client watch timeout = 4
osd data = $SERVICES/osd.\$id
osd objectstore = memstore
memstore device bytes = 6442450944
osd numa auto affinity = false
enable experimental unrecoverable data corrupting features = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$gateway tcp_nodelay=1
rgw thread pool size = 32
rgw enable usage log = false
rgw enable ops log = false
debug rgw = 0
rgw gc obj min wait = 60
rgw gc processor period = 60
objecter tick interval = 1
EOF
}

answers() { pid_of client.rgw >/dev/null && curl -s -m 5 -o /dev/null "http://127.0.0.1:$1/"; }
osd_is_up() { timeout 10 ceph -c "$CONF" osd stat | grep -q '1 up'; }

# daemon COMMAND...: start one that puts itself in the background, and holds no pipe of ours.
daemon() { timeout 60 "$@" </dev/null >>"$SERVICES/start.log" 2>&1 || failed "$1"; }

failed() {
  say "$1 failed; the end of $SERVICES/start.log:"
  tail -n 15 "$SERVICES/start.log" >&2
  exit 1
}

start_ceph() {
  local mon=$1 gateway=$2 fsid osd
  fsid=$(cat /proc/sys/kernel/random/uuid)
  osd=$(cat /proc/sys/kernel/random/uuid)
  write_settings "$fsid" "$mon" "$gateway"
  mkdir "$SERVICES/mon.a" "$SERVICES/osd.0"
  daemon monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon]" "$SERVICES/monmap"
  daemon ceph-mon -c "$CONF" --mkfs -i a --monmap "$SERVICES/monmap"
  daemon ceph-mon -c "$CONF" -i a
  daemon ceph -c "$CONF" osd new "$osd"
  daemon ceph-osd -c "$CONF" -i 0 --mkfs --osd-uuid "$osd"
  daemon ceph-osd -c "$CONF" -i 0
  wait_for 60 osd_is_up || failed "the OSD"
}

# user NAME KEY SECRET.  Test credentials: they open nothing but this store, which only this machine can reach.
user() {
  daemon radosgw-admin -c "$CONF" user create --uid="$1" --display-name="$1" --access-key="$2" --secret-key="$3"
}

# The settings the tests read; written last, so a file that exists belongs to services that were up.
write_env() {
  cat >"$ENV_FILE.new" <<EOF
made_by=$MADE_BY
conf=$CONF
port=$1
endpoint=http://127.0.0.1:$1
owner_key=geopatch-owner
owner_secret=owner-secret-for-tests-only
guest_key=geopatch-guest
guest_secret=guest-secret-for-tests-only
EOF
  mv "$ENV_FILE.new" "$ENV_FILE"
}

# Whether everything runs, by these very scripts, and answers.
is_up() {
  local name
  grep -qx "made_by=$MADE_BY" "$ENV_FILE" 2>/dev/null || return 1
  for name in "${DAEMONS[@]}"; do pid_of "$name" >/dev/null || return 1; done
  answers "$(sed -n 's/^port=//p' "$ENV_FILE")" && osd_is_up
}

main() {
  [ "$(id -u)" -eq 0 ] ||
    die "integration tests need root (Ceph, network namespaces): run as root, in a container say, or only: pytest -m slow"
  install_missing ceph-mon=ceph-mon ceph-osd=ceph-osd radosgw=radosgw ceph=ceph-common ip=iproute2 curl=curl
  if is_up; then
    say "already up: $ENV_FILE"
    return 0
  fi
  bash "$HERE/down.sh" || exit 1
  [ ! -e "$SERVICES" ] || die "$SERVICES exists and was not made by up.sh: remove it, or set GEOPATCH_SERVICES"
  mkdir -p "$SERVICES" && touch "$SERVICES/.geopatch-services" || die "cannot write to $SERVICES"
  local mon gateway
  mon=$(free_port 3300)
  gateway=$(free_port 7480)
  start_ceph "$mon" "$gateway"
  user owner geopatch-owner owner-secret-for-tests-only
  user guest geopatch-guest guest-secret-for-tests-only
  daemon radosgw -c "$CONF" -n client.rgw
  wait_for 60 answers "$gateway" || failed radosgw
  write_env "$gateway"
  say "up after ${SECONDS} s: $ENV_FILE"
}

main
bash "$HERE/slurm.sh" up
