# shellcheck shell=bash
# shellcheck disable=SC2154  # here is set by scripts/lab
# The tiny guest: Debian's cloud kernel and a busybox root in memory, on a bootable disk (BIOS, qcow2). It boots in
# seconds without KVM and has a root shell on tty1, a login on ttyS0 (root, no password), ACPI shutdown, DHCP or the
# address of a NoCloud seed, SSH with the seed's key, a page on port 80 and the guest agent. What it does at boot is
# guest/rc.

guest_modules=(virtio_pci virtio_blk virtio_net virtio_console virtio-rng virtio_balloon evdev button isofs vfat
  nls_cp437 nls_ascii)

guest_needs=(syslinux:syslinux mcopy:mtools mkfs.vfat:dosfstools mkfs.ext4:e2fsprogs sfdisk:fdisk qemu-img:qemu-utils
  cpio:cpio)

# guest_image: prints the path of the image, which is built once for each version of what it is made of.
guest_image() {
  need "${guest_needs[@]}"
  local cache version image work
  cache=$(cache_dir)
  version=$({
    cat "$here"/lab.d/guest/*
    declare -f guest_build guest_root guest_program bootable_disk
  } | sha256sum | cut -c1-12)
  image=$cache/guest-$version.qcow2
  if [[ ! -e $image ]]; then
    say "building the tiny guest"
    work=$(mktemp -d "$cache/guest.XXXXXX")
    # shellcheck disable=SC2064  # this folder, also when the variable is gone
    trap "rm -rf '$work'" EXIT
    guest_build "$work" >&2
    mv "$work/guest.qcow2" "$image"
  fi
  printf '%s\n' "$image"
}

guest_build() {
  local work=$1 kernel
  kernel=$(guest_kernel)
  kernel=$(unpacked "$kernel")
  guest_root "$work/root" "$kernel"
  (cd "$work/root" && find . -print0 | cpio --quiet -0 -o -H newc -R 0:0) | gzip -1 >"$work/initrd"

  mkdir "$work/boot" "$work/data"
  cp "$kernel"/boot/vmlinuz-* "$work/boot/vmlinuz"
  mv "$work/initrd" "$work/boot/initrd"
  bootable_disk "$work" 63 15 "$work/data" "console=tty0 console=ttyS0,115200 quiet mitigations=off no_timer_check"
}

# An emulated timer can come late on a busy host, which the kernel takes for a broken one: no_timer_check.
# bootable_disk WORK BOOT_MIB ROOT_MIB ROOT CMDLINE: WORK/guest.qcow2, for a BIOS. Its first partition (FAT, label BOOT)
# starts the kernel and initrd of WORK/boot through syslinux; the second (ext4, label root) is a copy of the folder ROOT.
# Nothing is mounted and no loop device is needed.
bootable_disk() {
  local work=$1 boot_end=$(($2 + 1)) root_mib=$3 root=$4 cmdline=$5 disk=$1/disk
  truncate -s $((boot_end + root_mib))M "$disk"
  printf '%s\n' "start=2048, size=$2M, type=c, bootable" "start=$((boot_end * 2048)), type=83" | sfdisk -q "$disk"
  # mkfs.vfat takes all that is behind the offset: so the disk ends there for a moment.
  truncate -s ${boot_end}M "$disk"
  mkfs.vfat -F 32 --offset 2048 -n BOOT "$disk" >/dev/null
  truncate -s $((boot_end + root_mib))M "$disk"
  mkfs.ext4 -q -F -L root -d "$root" -E offset=$((boot_end * 1024 * 1024)) "$disk" "${root_mib}M"

  printf '%s\n' 'DEFAULT linux' 'PROMPT 0' 'LABEL linux' '  LINUX /vmlinuz' '  INITRD /initrd' "  APPEND $cmdline" \
    >"$work/boot/syslinux.cfg"
  mcopy -i "$disk@@1M" "$work"/boot/* ::/
  syslinux --install -t 1048576 "$disk"
  dd if="$(unpacked syslinux-common)/usr/lib/syslinux/mbr/mbr.bin" of="$disk" bs=440 count=1 conv=notrunc status=none
  qemu-img convert -c -O qcow2 "$disk" "$work/guest.qcow2"
}

# guest_kernel: the package that linux-image-cloud-amd64 stands for.
guest_kernel() {
  local name
  name=$(find "$(cache_dir)" -maxdepth 1 -name 'linux-image-*-cloud-amd64' | sort -V | tail -n 1)
  if [[ ! $name ]]; then
    name=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
  fi
  if [[ ! $name ]]; then
    apt_update
    name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
  fi
  printf '%s\n' "${name##*/}"
}

# guest_root ROOT KERNEL: the root file system that the kernel unpacks into memory.
guest_root() {
  local root=$1 kernel=$2 busybox name release file
  busybox=$(unpacked busybox-static)/bin/busybox
  mkdir -p "$root"/{bin,dev,disk,etc/acpi,etc/dropbear,proc,root/.ssh,run,seed,sys,tmp,var/log,var/run,www}
  ln -s bin "$root/sbin"
  cp "$busybox" "$root/bin/"
  "$busybox" --list | while read -r name; do
    [[ $name == busybox ]] || ln -s busybox "$root/bin/$name"
  done
  ln -s /bin/busybox "$root/init"

  release=$(ls "$kernel/lib/modules")
  [[ -e $kernel/lib/modules/$release/modules.dep ]] || "$busybox" depmod -b "$kernel" "$release"
  for name in "${guest_modules[@]}"; do
    # A line reads "module: what it needs, all of it".
    grep "/$name.ko:" "$kernel/lib/modules/$release/modules.dep" | tr -d : | tr ' ' '\n'
  done | sort -u | while read -r file; do
    install -D -m 644 "$kernel/lib/modules/$release/$file" "$root/lib/modules/$release/$file"
  done
  "$busybox" depmod -b "$root" "$release"

  guest_program "$root" qemu-guest-agent usr/sbin/qemu-ga libglib2.0-0 libnuma1 liburing2 libudev1 libpcre2-8-0
  guest_program "$root" dropbear-bin usr/sbin/dropbear libtomcrypt1 libtommath1 libgmp10 libcrypt1 zlib1g

  cp "$here/lab.d/guest/rc" "$here/lab.d/guest/inittab" "$here/lab.d/guest/udhcpc" "$root/etc/"
  install -D "$here/lab.d/guest/power" "$root/etc/acpi/PWRF/00000080"
  printf 'root::0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\n' >"$root/etc/group"
  echo 'passwd: files' >"$root/etc/nsswitch.conf"
  echo /bin/sh >"$root/etc/shells"
}

# guest_program ROOT PACKAGE FILE LIBRARY-PACKAGE...: a dynamic program with its libraries.
guest_program() {
  local root=$1 package=$2 file=$3 program library paths=
  shift 3
  program=$(unpacked "$package")/$file
  for package in "$@"; do
    library=$(unpacked "$package")
    paths+=:$library/lib/x86_64-linux-gnu:$library/usr/lib/x86_64-linux-gnu
  done
  cp "$program" "$root/bin/"
  if LD_LIBRARY_PATH=${paths#:} ldd "$program" | grep 'not found'; then
    die "$program lacks libraries"
  fi
  LD_LIBRARY_PATH=${paths#:} ldd "$program" | grep -oE '(/[^ ]+)+ \(' | while read -r library _; do
    mkdir -p "$root/lib/x86_64-linux-gnu" "$root/lib64"
    case $library in
      */ld-linux*) cp -L "$library" "$root/lib64/" ;;
      *) cp -L "$library" "$root/lib/x86_64-linux-gnu/" ;;
    esac
  done
}
