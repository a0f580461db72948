# shellcheck shell=bash
# Shared by the scripts beside it: messages, packages, waiting. Sourced, never run.

PATH=$PATH:${HOME:=/root}/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

is_root() { [[ $(id -u) == 0 ]]; }

# need PROBE:PACKAGE...
# A probe is a command, or a path when it holds a slash. Packages whose probe is missing are installed as root;
# anybody else is told what to install.
need() {
  local pair probe package missing=() wanted=()
  for pair in "$@"; do
    probe=${pair%%:*} package=${pair#*:}
    wanted+=("$package")
    if [[ $probe == */* ]]; then
      [[ -e $probe ]] && continue
    else
      command -v "$probe" >/dev/null && continue
    fi
    missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local install="apt-get install -y --no-install-recommends ${missing[*]}"
  if ! is_root || ! command -v apt-get >/dev/null; then
    die "missing packages; as root run: $install"
  fi
  say "installing: ${missing[*]}"
  apt_update
  if ! apt_install --simulate "${missing[@]}" 2>/dev/null; then
    mapfile -t -O "${#missing[@]}" missing < <(offered_versions "${wanted[@]}")
    say "replacing what no configured source offers: ${missing[*]}"
  fi
  apt_install "${missing[@]}" || die "failed: $install"
}

# Never removes a package; replaces one only by a version that the caller names.
apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
    --no-remove --allow-downgrades "$@" >/dev/null
}

# offered_versions PACKAGE...: PACKAGE=VERSION for each that is installed in a version that no source offers. A stray
# backport (of qemu-utils, say) makes the packages that go with it impossible to install.
offered_versions() {
  local package installed offered
  for package in "$@"; do
    installed=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null) || continue
    [[ $installed ]] || continue
    offered=$(apt-cache madison "$package" | awk '{ print $3 }')
    grep -qxF -- "$installed" <<<"$offered" || printf '%s=%s\n' "$package" "${offered%%$'\n'*}"
  done
}

apt_update() {
  [[ -z ${apt_updated-} ]] || return 0
  apt-get -qq -o DPkg::Lock::Timeout=300 update || die "apt-get update failed"
  apt_updated=1
}

# cache_dir: where what is dear to make is kept between runs.
cache_dir() {
  local dir=${HWM_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hwm-lab}
  mkdir -p "$dir"
  printf '%s\n' "$dir"
}

# unpacked PACKAGE: downloads and unpacks a package into the cache without installing it; prints the folder.
unpacked() {
  local package=$1 cache dir
  cache=$(cache_dir)
  dir=$cache/$package
  if [[ ! -d $dir ]]; then
    rm -rf "$dir.new"
    mkdir -p "$dir.new/.deb"
    (
      cd "$dir.new/.deb"
      apt-get -qq -o APT::Sandbox::User=root download "$package" 2>/dev/null || {
        apt_update
        apt-get -qq -o APT::Sandbox::User=root download "$package"
      }
    ) >&2 || die "cannot download the package $package"
    dpkg -x "$dir.new"/.deb/*.deb "$dir.new"
    rm -rf "$dir.new/.deb"
    mv -T "$dir.new" "$dir" 2>/dev/null || rm -rf "$dir.new"
  fi
  printf '%s\n' "$dir"
}

# wait_for SECONDS COMMAND...: until the command succeeds; fails when the time is over.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# free_port: a loopback port below the ephemeral range on which nobody listens.
free_port() {
  local port
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 10000))
    if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      printf '%s\n' "$port"
      return
    fi
  done
  die "no free port found"
}

# unmount_below FOLDER: everything mounted under it, the deepest first.
unmount_below() {
  local target
  while read -r target; do
    umount -l "$target" 2>/dev/null || true
  done < <(awk -v folder="$1/" 'index($5, folder) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
}
