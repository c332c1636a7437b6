#!/usr/bin/env bash
# Makes sure that what the tests of deploy/ need is here; does nothing where it is, needs root only to install.
#
#   bash tests/services/deploy.sh
#
# To render kustomizations: kubectl 1.21 or newer, or kustomize 4 or newer (no Kubernetes). What apt offers is taken if it is new
# enough: Debian 12's is not. To carry out a Dockerfile where there is no container engine: mmdebstrap. Tests skip without.
set -uo pipefail
say() { printf 'deploy.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Whether the kubectl here knows components.
kubectl_is_new() {
  command -v kubectl >/dev/null || return 1
  local major
  major=$(kubectl version --client -o yaml 2>/dev/null | sed -n 's/^kustomizeVersion: *v\([0-9]*\)\..*/\1/p')
  [ "${major:-0}" -ge 4 ]
}

# Whether apt would install a kubectl that is new enough from this package.
apt_has() {
  local version
  version=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p')
  version=${version#*:}  # without the epoch
  [ -n "$version" ] && [ "$version" != "(none)" ] && dpkg --compare-versions "$version" ge 1.21
}

can_render() { kubectl_is_new || command -v kustomize >/dev/null; }
has_base() { docker info >/dev/null 2>&1 || command -v mmdebstrap >/dev/null || command -v debootstrap >/dev/null; }
install() { timeout 600 apt-get install -y -qq --no-install-recommends "$1" >/dev/null || die "apt-get could not install $1"; }

main() {
  if can_render && has_base; then
    say "already here"
    return 0
  fi
  command -v apt-get >/dev/null || die "install kubectl 1.21 or newer, and mmdebstrap: there is no apt-get here"
  export DEBIAN_FRONTEND=noninteractive
  timeout 300 apt-get update -qq >/dev/null || die "apt-get update failed: is there a network, and a mirror?"
  has_base || install mmdebstrap
  local package
  for package in kubectl kubernetes-client; do
    if ! can_render && apt_has "$package"; then install "$package"; fi
  done
  can_render || die "no package here has kubectl 1.21 or newer: see https://kubernetes.io/docs/tasks/tools/"
  say "installed"
}

main
