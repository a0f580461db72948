# shellcheck shell=bash
# A server for tests. Sourced after lib.sh, never run.

# start_demo: a server with simulated backends and the ten demo resources.
start_demo() { start_server '' --demo; }

# start_server FEATURES OPTION...: builds and starts the server in a new data directory; it ends, and its files go, when
# the shell exits. Sets $demo_url, $demo_dir and $demo_token, a token that may do everything as the owner of the demo
# resources.
start_server() {
  local port server=${CARGO_TARGET_DIR:-target}/debug/examples/server features=$1
  shift
  cargo build --quiet -p hwm-examples ${features:+--features "$features"} --example server ||
    die "the example server does not build"
  demo_dir=$(mktemp -d)
  trap stop_demo EXIT
  # A copy, so that a build meanwhile does not change what runs.
  cp "$server" "$demo_dir/server"
  port=$(free_port)
  # shellcheck disable=SC2034  # for who sources this
  demo_url=http://127.0.0.1:$port
  # 8 is the lock of scripts/test. Requests come as fast as they can.
  "$demo_dir/server" "$@" --listen "127.0.0.1:$port" --data-dir "$demo_dir/data" --caller-rate 0 \
    >"$demo_dir/log" 2>&1 8>&- &
  demo_pid=$!
  wait_for 60 grep -q '^listening on ' "$demo_dir/log" || {
    cat "$demo_dir/log" >&2
    die "the server does not come up"
  }
  # shellcheck disable=SC2034
  demo_token=$("$demo_dir/server" token --role universe.owner --org demo-org --group demo-group --user demo-user \
    --data-dir "$demo_dir/data")
}

# The server must have lived until now, and end as it promises. after_server, where there is such a function, comes then.
stop_demo() {
  local code=$?
  trap - EXIT
  if [[ ${demo_pid-} ]]; then
    kill -TERM "$demo_pid" 2>/dev/null || true
    if ! wait "$demo_pid"; then
      say "the server failed; the end of what it said:"
      tail -n 40 "$demo_dir/log" >&2
      code=1
    fi
  fi
  rm -rf "$demo_dir"
  ! declare -F after_server >/dev/null || after_server || true
  exit "$code"
}
