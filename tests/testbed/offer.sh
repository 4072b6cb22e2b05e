#!/bin/bash
# offer.sh: what the tests of a cluster from nothing need in their guest, as BINDS for uml.sh: the offline bundle, made now, and a root of
# Debian 13 as a machine finds itself before secure-slurm comes. BINDS=$(tests/testbed/offer.sh) tests/testbed/uml.sh trixie pytest ...
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
OUT=$top/build/bundle-cluster "$top/bundle/make.sh" >&2
echo "$top/build/bundle-cluster:/mnt/bundle $("$top/bundle/root.sh" ami trixie):/mnt/ami"
