#!/usr/bin/env bash
# System packages that tests need: SLURM's daemons, network namespaces, and a browser for the report. Where they cannot be
# installed those tests are skipped, saying so (in CI they fail).
set -euo pipefail
for command in slurmctld slurmd munged ip chromium; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing="${missing:-} $command"
done
[[ -z ${missing:-} ]] && exit 0
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not installed:$missing (needs root and apt-get); the tests that need them are skipped"
    exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 chromium fonts-liberation >/dev/null
