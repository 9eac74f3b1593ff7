#!/bin/bash
# ds-bench sweep over a real link: a Redis in a network namespace of its own, behind a pair of virtual interfaces whose rate tc sets.
# As root. Usage: bench/real_link.sh build/release/bin [options of ds-bench sweep]
set -euo pipefail
bin=$1 && shift
space=ds$$ here=ds${$}h there=ds${$}t folder=$(mktemp -d)
end() {
  [[ -f $folder/pid ]] && kill "$(cat "$folder/pid")" 2>/dev/null || true
  ip link del "$here" 2>/dev/null || true
  ip netns del "$space" 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
ip netns add "$space"
ip link add "$here" type veth peer name "$there" netns "$space"
ip addr add 10.214.7.1/30 dev "$here" && ip link set "$here" up
ip netns exec "$space" sh -c "ip addr add 10.214.7.2/30 dev $there && ip link set $there up && ip link set lo up"
ip netns exec "$space" redis-server --bind 10.214.7.2 --port 6379 --save '' --protected-mode no --daemonize yes --pidfile "$folder/pid" --dir "$folder" >/dev/null
# What the server sends is what waits: its end of the pair is shaped.
"$bin/ds-bench" sweep --store redis://10.214.7.2:6379 \
  --set-rate "ip netns exec $space tc qdisc replace dev $there root tbf rate {}bps burst 128kb latency 500ms" "$@"
