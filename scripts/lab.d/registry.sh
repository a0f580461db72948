# shellcheck shell=bash
# shellcheck disable=SC2154  # dir is set by scripts/lab
# Two registries on loopback: one with a password, one open. When docker is up too, the test images are pushed to both.

registry_install() { need docker-registry:docker-registry htpasswd:apache2-utils; }

registry_setup() {
  registry_user=hwm
  registry_password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
  htpasswd -Bbn "$registry_user" "$registry_password" >"$dir/registry.htpasswd"
  registry_port=$(free_port)
  registry_config "$registry_port" registry >"$dir/registry.yml"
  cat >>"$dir/registry.yml" <<YAML
auth:
  htpasswd:
    realm: hwm-test
    path: $dir/registry.htpasswd
YAML
  registry_open_port=$(free_port)
  registry_config "$registry_open_port" registry-open >"$dir/registry-open.yml"
}

# registry_config PORT FOLDER
registry_config() {
  cat <<YAML
version: 0.1
log:
  level: info
storage:
  filesystem:
    rootdirectory: $dir/$2
  delete:
    enabled: true
http:
  addr: 127.0.0.1:$1
YAML
}

registry_start() {
  local name port
  for name in registry registry-open; do
    run_daemon "$name" docker-registry serve "$dir/$name.yml"
    port=$(sed -n 's/^  addr: .*://p' "$dir/$name.yml")
    started "$name" 20 listens "$port"
  done
}

listens() { (: <"/dev/tcp/127.0.0.1/$1"); }

registry_ready() {
  put HWM_TEST_REGISTRY "127.0.0.1:$registry_port"
  put HWM_TEST_REGISTRY_USER "$registry_user"
  put HWM_TEST_REGISTRY_PASSWORD "$registry_password"
  put HWM_TEST_REGISTRY_OPEN "127.0.0.1:$registry_open_port"
  [[ ! -S $dir/docker.sock ]] || test_images_push
}

registry_halt() {
  stop_daemon registry "$1"
  stop_daemon registry-open "$1"
}

registry_stop() { registry_halt TERM; }

registry_clean() { :; }
