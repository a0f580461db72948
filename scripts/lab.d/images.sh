# shellcheck shell=bash
# shellcheck disable=SC2154  # here, dir and the registry's variables are set by scripts/lab and registry.sh
# The test images: a static busybox and the folders in images/, built without any public registry.

# All images, in the order they build on each other.
test_images=(busybox httpd infer stubborn layers)

test_images_build() {
  local busybox root name
  busybox=$(unpacked busybox-static)/bin/busybox
  root=$dir/images
  cp -r "$here/lab.d/images" "$root"
  mkdir -p "$root/busybox/rootfs"/{bin,etc,proc,sys,dev,root,tmp,www}
  chmod 1777 "$root/busybox/rootfs/tmp"
  cp "$busybox" "$root/busybox/rootfs/bin/busybox"
  "$busybox" --list | while read -r name; do
    [[ $name == busybox ]] || ln -s busybox "$root/busybox/rootfs/bin/$name"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/busybox/rootfs/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/busybox/rootfs/etc/group"
  # Layers that do not compress, so that a pull has progress to report.
  for name in 1 2 3; do
    head -c 8M /dev/urandom >"$root/layers/blob$name"
  done
  for name in "${test_images[@]}"; do
    # The classic builder: the other one needs a plugin that Debian 12 has not.
    DOCKER_BUILDKIT=0 private_docker build -q -t "hwm-test/$name:1" "$root/$name" >>"$dir/log/images.log" 2>&1 || {
      tail -n 20 "$dir/log/images.log" >&2
      die "cannot build the image $name"
    }
  done
  rm -rf "$root"
  put HWM_TEST_IMAGES "$(printf "hwm-test/%s:1 " "${test_images[@]}" | sed "s/ $//")"
}

test_images_push() {
  local name registry
  private_docker login -u "$registry_user" --password-stdin "127.0.0.1:$registry_port" \
    <<<"$registry_password" >/dev/null 2>&1 || die "cannot log in to the registry"
  for registry in "127.0.0.1:$registry_port" "127.0.0.1:$registry_open_port"; do
    for name in "${test_images[@]}"; do
      private_docker tag "hwm-test/$name:1" "$registry/hwm-test/$name:1"
      private_docker push -q "$registry/hwm-test/$name:1" >/dev/null
      # Gone from the daemon's list, so that a pull under this name really asks the registry.
      private_docker rmi "$registry/hwm-test/$name:1" >/dev/null
    done
  done
  private_docker logout "127.0.0.1:$registry_port" >/dev/null
}
