#!/usr/bin/env bash
# System packages that tests need: SLURM's daemons, network namespaces, a browser for the report, openssl, Prometheus with
# promtool, and node_exporter. Where they cannot be installed those tests are skipped, saying so (in CI they fail).
set -euo pipefail
for command in slurmctld slurmd munged ip chromium prometheus promtool prometheus-node-exporter openssl; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing="${missing:-} $command"
done
[[ -z ${missing:-} ]] && exit 0
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not installed:$missing (needs root and apt-get); the tests that need them are skipped"
    exit 0
fi
# Tests start what they need themselves: no package may start its service on this machine.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 chromium fonts-liberation \
    prometheus prometheus-node-exporter openssl >/dev/null
