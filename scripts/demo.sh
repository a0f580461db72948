# shellcheck shell=bash
# A demo server for tests: simulated backends, the ten demo resources. Sourced after lib.sh, never run.

# start_demo: builds and starts the server in a new data directory; it ends, and its files go, when the shell exits.
# Sets $demo_url, $demo_dir and $demo_token, a token that may do everything as the owner of the demo resources.
start_demo() {
  local port server=${CARGO_TARGET_DIR:-target}/debug/examples/server
  cargo build --quiet -p hwm-examples --example server || die "the example server does not build"
  demo_dir=$(mktemp -d)
  trap stop_demo EXIT
  # A copy, so that a build meanwhile does not change what runs.
  cp "$server" "$demo_dir/server"
  port=$(free_port)
  # shellcheck disable=SC2034  # for who sources this
  demo_url=http://127.0.0.1:$port
  # 8 is the lock of scripts/test. Requests come as fast as they can.
  "$demo_dir/server" --demo --listen "127.0.0.1:$port" --data-dir "$demo_dir/data" --caller-rate 0 \
    >"$demo_dir/log" 2>&1 8>&- &
  demo_pid=$!
  wait_for 60 grep -q '^listening on ' "$demo_dir/log" || {
    cat "$demo_dir/log" >&2
    die "the demo server does not come up"
  }
  # shellcheck disable=SC2034
  demo_token=$("$demo_dir/server" token --role universe.owner --org demo-org --group demo-group --user demo-user \
    --data-dir "$demo_dir/data")
}

# The server must have lived until now, and end as it promises.
stop_demo() {
  local code=$?
  trap - EXIT
  if [[ ${demo_pid-} ]]; then
    kill -TERM "$demo_pid" 2>/dev/null || true
    if ! wait "$demo_pid"; then
      say "the demo server failed; the end of what it said:"
      tail -n 40 "$demo_dir/log" >&2
      code=1
    fi
  fi
  rm -rf "$demo_dir"
  exit "$code"
}
