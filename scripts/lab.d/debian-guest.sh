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
    (debian_guest_build "$work") >&2 || {
      unmount_below "$work"
      tail -n 20 "$work/log" >&2 || true
      rm -rf --one-file-system "$work"
      die "cannot build the Debian guest"
    }
    mv "$work/guest.qcow2" "$image"
    rm -rf --one-file-system "$work"
  fi
  printf '%s\n' "$image"
}

debian_guest_build() {
  set -euo pipefail
  local work=$1 root=$1/root packages mirror
  printf -v packages '%s,' "${debian_guest_packages[@]}"
  # shellcheck disable=SC2016  # apt expands these
  mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' | awk '$1 == "bookworm" && !site { site = $2 } END { print site }')
  debootstrap --variant=minbase --include="${packages%,}" bookworm "$root" "${mirror:-http://deb.debian.org/debian}" \
    >"$work/log" 2>&1
  unmount_below "$work"

  echo 'LABEL=root / ext4 defaults,errors=remount-ro 0 1' >"$root/etc/fstab"
  echo localhost >"$root/etc/hostname"
  # Only what this guest's disk needs: a small initrd starts much sooner by emulation.
  echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/lab"
  printf '%s\n' virtio_pci virtio_blk virtio_scsi ext4 >>"$root/etc/initramfs-tools/modules"
  chroot "$root" update-initramfs -u >>"$work/log" 2>&1
  # Other sources would be waited for.
  echo 'datasource_list: [NoCloud, None]' >"$root/etc/cloud/cloud.cfg.d/99-lab.cfg"
  chroot "$root" systemctl enable qemu-guest-agent ssh systemd-networkd >>"$work/log" 2>&1 || true
  rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*_*
  : >"$root/etc/machine-id"

  mkdir "$work/boot"
  cp "$root"/boot/vmlinuz-* "$work/boot/vmlinuz"
  cp "$root"/boot/initrd.img-* "$work/boot/initrd"
  bootable_disk "$work" 127 1920 "$root" "root=LABEL=root ro console=tty0 console=ttyS0,115200 mitigations=off"
}
