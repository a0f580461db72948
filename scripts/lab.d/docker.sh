# shellcheck shell=bash
# shellcheck disable=SC2154  # dir, id, number and cgroup are set by scripts/lab
# A private containerd and dockerd. It writes no iptables rules (published ports go through docker-proxy), so it lives
# beside a system dockerd without touching its chains, and it has its own bridge, control group and folders.

docker_install() {
  need dockerd:docker.io docker:docker.io containerd:containerd ip:iproute2
}

docker_setup() {
  docker_bridge=hwmd-$id
  mkdir -p "$dir/docker" "$dir/containerd"
  echo '{}' >"$dir/docker/daemon.json"
  cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd/root"
state = "$dir/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$dir/containerd/sock"
TOML
  ip link delete "$docker_bridge" 2>/dev/null || true
  ip link add "$docker_bridge" type bridge
  ip address add "10.$((216 + number / 256 % 8)).$((number % 256)).1/24" dev "$docker_bridge"
  ip link set "$docker_bridge" up
}

docker_start() {
  run_daemon containerd containerd --config "$dir/containerd.toml"
  started containerd 30 test -S "$dir/containerd/sock"
  # A killed dockerd leaves its pid file, and a zombie of that number would keep the next one from starting.
  runs dockerd || rm -f "$dir/docker/pid"
  run_daemon dockerd dockerd \
    --config-file "$dir/docker/daemon.json" \
    --host "unix://$dir/docker.sock" \
    --containerd "$dir/containerd/sock" \
    --data-root "$dir/docker/data" \
    --exec-root "$dir/docker/exec" \
    --pidfile "$dir/docker/pid" \
    --bridge "hwmd-$id" \
    --iptables=false --ip6tables=false --ip-masq=false --ip-forward=false \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$cgroup"
  started dockerd 60 private_docker version
}

docker_ready() {
  put HWM_TEST_DOCKER_HOST "unix://$dir/docker.sock"
  put HWM_TEST_DOCKER_PIDFILE "$dir/dockerd.pid"
  test_images_build
}

docker_halt() { stop_daemon dockerd "$1"; }

docker_stop() {
  local containers
  if containers=$(timeout 10 docker -H "unix://$dir/docker.sock" ps -aq 2>/dev/null) && [[ -n $containers ]]; then
    # shellcheck disable=SC2086  # one word per container
    timeout 60 docker -H "unix://$dir/docker.sock" rm -f $containers >/dev/null 2>&1 || true
  fi
  stop_daemon dockerd
  stop_daemon containerd
}

docker_clean() {
  ip link delete "hwmd-$id" 2>/dev/null || true
  # Made by every dockerd wherever its own folders are.
  rmdir /run/docker/plugins /run/docker /run/containerd/s /run/containerd 2>/dev/null || true
}

# The lab's own credentials and settings, never those of the user.
private_docker() { DOCKER_CONFIG=$dir/docker-config docker -H "unix://$dir/docker.sock" "$@"; }
