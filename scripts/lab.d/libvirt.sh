# shellcheck shell=bash
# shellcheck disable=SC2154  # here, dir, id and number are set by scripts/lab
# A private libvirtd and virtlogd, by emulation, in a mount namespace where libvirt's system folders are the lab's own
# (libvirt-namespace), with three bridges: an untagged one with DHCP, and one for each of two VLANs by name pattern.

libvirt_vlans=(100 200)

libvirt_install() {
  need libvirtd:libvirt-daemon-system virsh:libvirt-clients dnsmasq:dnsmasq-base ip:iproute2 unshare:util-linux \
    /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so:libvirt-daemon-driver-qemu \
    qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils /usr/share/seabios/bios-256k.bin:seabios \
    iptables:iptables ebtables:ebtables xmllint:libxml2-utils mtype:mtools ssh:openssh-client
}

libvirt_setup() {
  local folder=$dir/libvirt vlan index=0
  mkdir -p "$folder"/{run,lib/images,lib/qemu,lib/boot,log/qemu,cache/qemu,mark,images}
  chown libvirt-qemu "$folder/lib/qemu" "$folder/cache/qemu"
  cp -a /etc/libvirt "$folder/etc"
  rm -rf "$folder"/etc/qemu/{networks,autostart,*.xml} "$folder"/etc/{secrets,storage}
  mkdir -p /run/libvirt
  cat >"$folder/etc/libvirtd.conf" <<CONF
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
log_filters = "3:util.object"
log_outputs = "2:stderr"
CONF
  cat >"$folder/etc/qemu.conf" <<CONF
security_driver = "none"
CONF
  libvirt_bridge "hwmv-$id" "$(libvirt_net 0).1/24"
  for vlan in "${libvirt_vlans[@]}"; do
    index=$((index + 1))
    libvirt_bridge "hwmv-$id.$vlan" "$(libvirt_net "$index").1/24"
  done
}

# libvirt_net INDEX: the first three bytes of a bridge's network.
libvirt_net() { printf '10.%d.%d\n' $((224 + 8 * $1 + number / 256 % 8)) $((number % 256)); }

libvirt_bridge() {
  ip link delete "$1" 2>/dev/null || true
  ip link add "$1" type bridge
  ip address add "$2" dev "$1"
  ip link set "$1" up
}

libvirt_daemon() {
  local name=$1
  run_daemon "$name" unshare --mount --propagation private "$here/lab.d/libvirt-namespace" "$dir/libvirt" \
    "hwm-lab-$id" "$name" --pid-file "$dir/libvirt/$name.pid" --config "/etc/libvirt/$name.conf"
}

libvirt_start() {
  local net
  net=$(libvirt_net 0)
  run_daemon dnsmasq dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --bind-interfaces \
    --interface="hwmv-$id" --dhcp-range="$net.100,$net.199,1h" --dhcp-option=option:router \
    --dhcp-leasefile="$dir/libvirt/leases" --pid-file= --user=root
  libvirt_daemon virtlogd
  started virtlogd 20 test -S "$dir/libvirt/run/virtlogd-sock"
  libvirt_daemon libvirtd
  started libvirtd 60 private_virsh version
}

libvirt_ready() {
  local index=0 vlan vlans=()
  put HWM_TEST_LIBVIRT_URI "$(libvirt_uri)"
  put HWM_TEST_LIBVIRT_PIDFILE "$dir/libvirtd.pid"
  put HWM_TEST_LIBVIRT_IMAGES "$dir/libvirt/images"
  put HWM_TEST_DOMAIN_TYPE qemu
  put HWM_TEST_BRIDGE "hwmv-$id"
  put HWM_TEST_BRIDGE_NET "$(libvirt_net 0)"
  for vlan in "${libvirt_vlans[@]}"; do
    index=$((index + 1))
    vlans+=("$vlan=$(libvirt_net "$index")")
  done
  put HWM_TEST_VLAN_NETS "${vlans[*]}"
  put HWM_TEST_CLOUD_INIT "$(libvirt_cloud_init)"
  # A copy where QEMU's user may read it.
  cp "$(guest_image)" "$dir/libvirt/images/guest.qcow2"
  put HWM_TEST_GUEST "$dir/libvirt/images/guest.qcow2"
}

# libvirt_cloud_init: cloud-init's own validators, unpacked: installed, it would set this machine up at its next boot.
libvirt_cloud_init() {
  local modules=/usr/lib/python3/dist-packages folder package wanted=()
  for package in configobj jinja2 jsonpatch jsonschema netifaces oauthlib requests yaml; do
    wanted+=("/usr/share/doc/python3-$package:python3-$package")
  done
  need python3:python3 "${wanted[@]}"
  folder=$(unpacked cloud-init)
  printf '#!/bin/sh\nPYTHONPATH=%s exec /usr/bin/python3 -m cloudinit.cmd.main "$@"\n' "$folder$modules" >"$dir/cloud-init"
  chmod +x "$dir/cloud-init"
  printf '%s\n' "$dir/cloud-init"
}

libvirt_uri() { printf 'qemu+unix:///system?socket=%s/libvirt/run/libvirt-sock\n' "$dir"; }

private_virsh() { timeout 60 virsh -q -c "$(libvirt_uri)" "$@"; }

libvirt_halt() { stop_daemon libvirtd "$1"; }

# Domains go through a living libvirtd, which then also takes back what it made for them (taps, filter rules).
libvirt_stop() {
  local domain
  [[ -d $dir/libvirt/etc ]] || return 0
  if ! private_virsh version >/dev/null 2>&1; then
    stop_daemon libvirtd KILL
    if [[ $(libvirt_namespace_pids) ]]; then
      (libvirt_start) >/dev/null 2>&1 || true
    fi
  fi
  while read -r domain; do
    [[ ! $domain ]] || private_virsh destroy "$domain" >/dev/null 2>&1 || true
  done < <(private_virsh list --uuid 2>/dev/null)
  stop_daemon libvirtd
  stop_daemon virtlogd
  stop_daemon dnsmasq
  libvirt_namespace_pids | xargs -r kill -KILL 2>/dev/null
}

libvirt_namespace_pids() {
  grep -lE -- "- tmpfs hwm-lab-$id " /proc/[0-9]*/mountinfo 2>/dev/null | cut -d/ -f3
}

libvirt_clean() {
  local vlan
  for vlan in '' "${libvirt_vlans[@]/#/.}"; do
    ip link delete "hwmv-$id$vlan" 2>/dev/null || true
  done
  libvirt_clean_filters
  # Removing a folder unmounts what another lab has there in its own namespace.
  if ! grep -qs ' /run/libvirt ' /proc/[0-9]*/mountinfo; then
    rmdir /run/libvirt 2>/dev/null || true
  fi
  find /sys/fs/cgroup -depth -type d -path '*/machine*' -exec rmdir {} \; 2>/dev/null || true
}

# Filter chains of taps that are gone: libvirtd forgets some when a domain ends while it starts.
libvirt_clean_filters() {
  local chain tap left=()
  while read -r chain; do
    tap=$(grep -oE 'vnet[0-9]+' <<<"$chain")
    [[ -e /sys/class/net/$tap ]] || left+=("$chain")
  done < <(ebtables -t nat -L 2>/dev/null | sed -n 's/^Bridge chain: \(.*-vnet[0-9].*\), entries.*/\1/p')
  for chain in "${left[@]}"; do
    tap=$(grep -oE 'vnet[0-9]+' <<<"$chain")
    ebtables -t nat -D PREROUTING -i "$tap" -j "$chain" 2>/dev/null || true
    ebtables -t nat -D POSTROUTING -o "$tap" -j "$chain" 2>/dev/null || true
    ebtables -t nat -F "$chain" || true
  done
  for chain in "${left[@]}"; do
    ebtables -t nat -X "$chain" || true
  done
}
