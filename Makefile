# secure-slurm. `make` lists the targets. Everything runs on one machine, as root, with no service installed on it:
# the roots of Debian 13 (Slurm 24.11) and sid (Slurm 26.05) are built once, outside this folder.
SHELL := /bin/bash
TESTBED := tests/testbed
SUITES := trixie sid
export SECURE_SLURM_CACHE ?= /var/cache/secure-slurm

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit list-policy-tests test-services test-cluster faults soak bench bundle shell lint format lock clean roots

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

roots:  ## build the two Debian roots that everything runs in (first time: about three minutes)
	@pids=; for s in $(SUITES); do $(TESTBED)/root.sh $$s >/dev/null & pids+=" $$!"; done; for p in $$pids; do wait $$p || exit 1; done

demo:  ## the main job on a real cluster, step by step; writes build/demo.json
	@OUT=$(CURDIR)/build/demo $(TESTBED)/uml.sh trixie demo
	@cp build/demo/demo.json build/demo.json

test: test-unit test-services test-cluster  ## every test: unit, services, cluster

test-unit: roots  ## unit tests and linters on Python 3.13 and 3.14, and on this machine's if it is 3.11 or later
	@$(TESTBED)/suite.sh unit

test-services: roots  ## against real OpenBao, slapd and Samba AD
	@$(TESTBED)/suite.sh services

test-cluster: roots  ## against whole clusters with dm-crypt: Slurm 24.11 and 26.05 at the same time
	@$(TESTBED)/suite.sh cluster $(SUITES)

faults: roots  ## every step of a job x every fault, on both Slurms; writes build/faults.json (make test runs some of it)
	@$(TESTBED)/suite.sh faults $(SUITES)

soak: roots  ## 1,000 jobs with faults at random (SOAK_JOBS, SOAK_SEED); writes build/soak.json (make test runs a few)
	@$(TESTBED)/suite.sh soak $(SUITES)

list-policy-tests: roots  ## how many policy tests there are, by pytest's own collection; the last line is the number
	@$(TESTBED)/suite.sh policy

bench: roots  ## benchmarks; writes build/bench.json
	@$(TESTBED)/suite.sh bench

bundle:  ## the offline bundle for machines without internet, in build/bundle; KEY=FILE signs it (docs/install.md)
	@OUT=$(CURDIR)/build/bundle KEY=$(KEY) EXTRA=$(EXTRA) bundle/make.sh

shell:  ## a terminal inside a running cluster with test accounts
	@TTY=1 LIMIT=36000 OUT=$(CURDIR)/build/shell $(TESTBED)/uml.sh $(or $(SUITE),trixie) cluster_shell ROWS=$$(tput lines) COLS=$$(tput cols)

lint: roots  ## ruff and mypy
	@$(TESTBED)/chroot.sh trixie sh -c 'cd /src && ruff check . --no-cache && ruff format --check . --no-cache && mypy --cache-dir=/tmp/mypy'

lock:  ## write the lock files anew (needs uv)
	cd requirements && for f in runtime test ldap pip s3 parallelcluster cloudformation; do uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-header $$f.in -o $$f.lock; done

clean:  ## remove build/
	rm -rf build
