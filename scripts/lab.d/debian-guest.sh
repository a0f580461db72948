# shellcheck shell=bash
# shellcheck disable=SC2154  # here, guest_needs are set by the scripts beside this one
# A real Debian 12 guest: cloud-init, netplan, OpenSSH and the guest agent. Built from packages in minutes, then cached.

debian_guest_packages=(linux-image-cloud-amd64 initramfs-tools systemd-sysv udev dbus netplan.io cloud-init
  cloud-guest-utils fdisk e2fsprogs openssh-server qemu-guest-agent sudo iproute2 iputils-ping)

# debian_guest_image: prints the path of the image, which is built once for each version of its recipe.
debian_guest_image() {
  is_root || die "must run as root"
  need "${guest_needs[@]}" debootstrap:debootstrap
  local cache version image work
  cache=$(cache_dir)
  version=$({
    echo "${debian_guest_packages[@]}"
    declare -f debian_guest_build bootable_disk
  } | sha256sum | cut -c1-12)
  image=$cache/debian-12-$version.qcow2
  if [[ ! -e $image ]]; then
    say "building the Debian guest (minutes)"
    work=$(mktemp -d "$cache/debian.XXXXXX")
    # shellcheck disable=SC2064  # this folder, also when the variable is gone
    trap "debian_guest_clean '$work'" EXIT
    debian_guest_build "$work" >&2
    mv "$work/guest.qcow2" "$image"
  fi
  printf '%s\n' "$image"
}

debian_guest_clean() {
  if [[ ! -e $1/done ]]; then
    tail -n 20 "$1/log" >&2 || true
    say "cannot build the Debian guest"
  fi
  unmount_below "$1"
  rm -rf --one-file-system "$1"
}

debian_guest_build() {
  local work=$1 root=$1/root mirror
  # shellcheck disable=SC2016  # apt expands these
  mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' | awk '$1 == "bookworm" && !site { site = $2 } END { print site }')
  debootstrap --variant=minbase bookworm "$root" "${mirror:-http://deb.debian.org/debian}" >"$work/log" 2>&1
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  mount -t proc proc "$root/proc"
  # Only what this guest's disk needs: a small initrd starts much sooner by emulation.
  mkdir -p "$root/etc/initramfs-tools/conf.d"
  echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/lab"
  DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq install -y --no-install-recommends \
    "${debian_guest_packages[@]}" >>"$work/log" 2>&1
  echo 'LABEL=root / ext4 defaults,errors=remount-ro 0 1' >"$root/etc/fstab"
  echo localhost >"$root/etc/hostname"
  printf '%s\n' virtio_pci virtio_blk virtio_scsi ext4 >>"$root/etc/initramfs-tools/modules"
  chroot "$root" update-initramfs -u >>"$work/log" 2>&1
  # Other sources would be waited for, and there are no locales to choose from.
  printf '%s\n' 'datasource_list: [NoCloud, None]' 'locale: false' 'apt: {preserve_sources_list: true}' \
    >"$root/etc/cloud/cloud.cfg.d/99-lab.cfg"
  chroot "$root" systemctl enable qemu-guest-agent ssh systemd-networkd >>"$work/log" 2>&1
  unmount_below "$work"
  rm -f "$root/usr/sbin/policy-rc.d" "$root"/etc/ssh/ssh_host_* "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*_*
  : >"$root/etc/machine-id"

  mkdir "$work/boot"
  cp "$root"/boot/vmlinuz-* "$work/boot/vmlinuz"
  cp "$root"/boot/initrd.img-* "$work/boot/initrd"
  bootable_disk "$work" 127 1920 "$root" "root=LABEL=root ro console=tty0 console=ttyS0,115200 mitigations=off no_timer_check"
  : >"$work/done"
}
