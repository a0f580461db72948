# shellcheck shell=bash
# A Debian host with libvirt, made to be emulated: its kernel has an IOMMU and VFIO, which the machine that runs the tests may
# lack. Built from packages in minutes, then cached. It has no init system: it runs `init` of the
# tar on its second disk.

passthrough_packages=(linux-image-amd64 initramfs-tools kmod iproute2 procps busybox-static ca-certificates curl jq e2fsprogs
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils seabios)

passthrough_needs=(debootstrap:debootstrap qemu-img:qemu-utils qemu-system-x86_64:qemu-system-x86 mkfs.ext4:e2fsprogs)

# passthrough_host: prints the folder with vmlinuz, initrd and root.qcow2, which is built once for each version of its recipe.
passthrough_host() {
  is_root || die "must run as root"
  need "${passthrough_needs[@]}"
  local cache version host work
  cache=$(cache_dir)
  version=$({
    echo "${passthrough_packages[@]}"
    declare -f passthrough_build
  } | sha256sum | cut -c1-12)
  host=$cache/passthrough-$version
  if [[ ! -e $host ]]; then
    say "building the host with an IOMMU (minutes)"
    work=$(mktemp -d "$cache/passthrough.XXXXXX")
    # shellcheck disable=SC2064  # this folder, also when the variable is gone
    trap "passthrough_clean '$work'" EXIT
    passthrough_build "$work" >&2
    mv -T "$work/host" "$host"
  fi
  printf '%s\n' "$host"
}

passthrough_clean() {
  if [[ ! -e $1/done ]]; then
    tail -n 20 "$1/log" >&2 || true
    say "cannot build the host with an IOMMU"
  fi
  unmount_below "$1"
  rm -rf --one-file-system "$1"
}

# The suite is this machine's own, so that a program that was linked here runs there.
passthrough_build() {
  local work=$1 root=$1/root suite mirror
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
  # shellcheck disable=SC2016  # apt expands these
  mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' | awk -v suite="$suite" '$1 == suite && !site { site = $2 } END { print site }')
  debootstrap --variant=minbase "$suite" "$root" "${mirror:-http://deb.debian.org/debian}" >"$work/log" 2>&1
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  mount -t proc proc "$root/proc"
  # Only what its own disk needs: a small initrd starts much sooner by emulation.
  mkdir -p "$root/etc/initramfs-tools/conf.d"
  echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/lab"
  DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq install -y --no-install-recommends \
    "${passthrough_packages[@]}" >>"$work/log" 2>&1
  printf '%s\n' virtio_pci virtio_blk ext4 >>"$root/etc/initramfs-tools/modules"
  chroot "$root" update-initramfs -u >>"$work/log" 2>&1
  printf '%s\n' '#!/bin/sh' 'mount -t devtmpfs devtmpfs /dev 2>/dev/null' 'mkdir -p /walk' 'tar -xf /dev/vdb -C /walk' \
    'exec /bin/bash /walk/init' >"$root/sbin/walk-init"
  chmod +x "$root/sbin/walk-init"
  unmount_below "$work"
  rm -f "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*_*
  rm -rf "$root"/usr/share/{doc,man,locale}

  mkdir "$work/host"
  mv "$root"/boot/vmlinuz-* "$work/host/vmlinuz"
  mv "$root"/boot/initrd.img-* "$work/host/initrd"
  mkfs.ext4 -q -F -O ^has_journal -d "$root" "$work/disk" 24G
  qemu-img convert -O qcow2 "$work/disk" "$work/host/root.qcow2"
  : >"$work/done"
}
