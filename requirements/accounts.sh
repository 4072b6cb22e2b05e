#!/bin/sh
# The system accounts that the daemons run as; safe to run again. One account a daemon: none may read another's keys.
set -eu
nologin=/usr/sbin/nologin
group() { getent group "$1" >/dev/null || groupadd --system "$1"; }
account() { getent passwd "$1" >/dev/null || useradd --system --user-group --no-create-home --home-dir / --shell $nologin "$1"; }
group secure-record                # may read the record key, the membership snapshot and the papers of break-glass
group secure-break-glass           # may ask for break-glass and approve it; the site adds its people
account secure-decide              # decision daemon: no Vault token, no network
account secure-life                # lifecycle daemon: Vault, no user input but signed records
account secure-glass               # break-glass daemon: no key, no network
account secure-ldap                # reads the directory
account secure-enrol               # enrolment daemon: signs nodes' certificates, strangers speak to it
account secure-node                # node daemon: the node's certificate
usermod -a -G secure-record secure-decide
usermod -a -G secure-record secure-life
