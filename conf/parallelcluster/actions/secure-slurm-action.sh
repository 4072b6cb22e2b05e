#!/bin/sh
# Custom action of ParallelCluster: secure-slurm from the offline bundle, onto a machine without internet.
#
#   secure-slurm-action.sh ROLE STAGE BUNDLE PUBLIC-KEY SITE
#
#   ROLE        head, login or compute
#   STAGE       start (OnNodeStart), or configured (OnNodeConfigured, OnNodeUpdated)
#   BUNDLE      s3://BUCKET/PREFIX/secure-slurm-VERSION.tar.gz, with its signature in BUNDLE.sig (file:///... for one in the image)
#   PUBLIC-KEY  the Ed25519 key that signs both archives, 32 bytes in base64, as bundle/sign.sh prints it
#   SITE        s3://BUCKET/PREFIX/site.tar.gz, with SITE.sig: what bundle/site.sh made of the site's configuration
#
# Nothing of an archive is unpacked, let alone run, before its signature is verified; the key and the version come from the cluster's
# configuration, not from the bucket. Whatever goes wrong ends this with 1, and ParallelCluster then gives the machine up: a compute
# node that is not verified, not enrolled or not green takes no job. This file itself is only as true as the bucket it came from:
# docs/decisions/0033-offline-bundle.md.
set -eu
umask 022
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
export PATH LC_ALL
prefix=/opt/secure-slurm etc=/etc/secure-slurm slurm_etc=/opt/slurm/etc cloud=/etc/parallelcluster
say() { echo "secure-slurm: $*"; }
fail() { echo "secure-slurm: $*" >&2; exit 1; }

[ $# = 5 ] || fail "five arguments are needed: ROLE STAGE BUNDLE PUBLIC-KEY SITE, not $#"
role=$1 stage=$2 bundle=$3 key=$4 site=$5
case $role in head|login|compute) ;; *) fail "no such role: $role (head, login or compute)" ;; esac
case $stage in start|configured) ;; *) fail "no such stage: $stage (start or configured)" ;; esac
[ "$(printf %s "$key" | tr -d 'A-Za-z0-9+/')" = = ] && [ ${#key} = 44 ] || fail "the public key is not 32 bytes in base64"
version=${bundle##*/secure-slurm-} version=${version%.tar.gz}
case $version in *[!0-9.]*) version= ;; esac  # grep looks at lines, and one that fits would do
[ "$bundle" = "${bundle%/*}/secure-slurm-$version.tar.gz" ] && printf %s "$version" | grep -qx '[0-9]\{1,6\}\.[0-9]\{1,6\}\.[0-9]\{1,6\}' \
  || fail "the bundle is not called secure-slurm-VERSION.tar.gz: $bundle"
case $site in */site.tar.gz) serial= ;; */site-*.tar.gz) serial=${site##*/site-} serial=${serial%.tar.gz} ;; *) fail "not called site.tar.gz or site-NUMBER.tar.gz: $site" ;; esac
case $serial in *[!0-9]*|0*) fail "not called site.tar.gz or site-NUMBER.tar.gz: $site" ;; esac
[ "$(id -u)" = 0 ] || fail "run it as root"

exec 9> /run/secure-slurm-action.lock
flock -w 600 9 || fail "another run of this action does not end"
work=$(mktemp -d /var/tmp/secure-slurm.XXXXXXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# -- getting ---------------------------------------------------------------------------------------------------------
setting() { [ ! -r "$cloud/cfnconfig" ] || sed -n "s/^$1=[\"']\{0,1\}\([A-Za-z0-9._-]*\)[\"']\{0,1\}\$/\1/p" "$cloud/cfnconfig" | tail -n 1; }
s3= # what reads S3: the aws command of the machine or of ParallelCluster, or the latter's boto3
s3_client() {
  for s3 in /usr/local/bin/aws /usr/bin/aws /opt/parallelcluster/pyenv/versions/*/envs/*/bin/aws; do
    [ ! -x "$s3" ] || return 0
  done
  for s3 in /opt/parallelcluster/pyenv/versions/*/envs/*/bin/python3; do
    ! { [ -x "$s3" ] && "$s3" -I -c 'import boto3' 2>/dev/null; } || return 0
  done
  fail "no aws command and no boto3 to read S3 with"
}
from_s3() {  # URL, file
  region=$(setting cfn_region)
  [ -z "$region" ] || export AWS_DEFAULT_REGION="$region" AWS_REGION="$region"
  export AWS_STS_REGIONAL_ENDPOINTS=regional
  case $s3 in
    */aws) timeout 300 "$s3" s3 cp --only-show-errors "$1" "$2" </dev/null ;;
    *) timeout 300 "$s3" -I -c 'import boto3, sys
bucket, _, key = sys.argv[1][5:].partition("/")
boto3.client("s3").download_file(bucket, key, sys.argv[2])' "$1" "$2" ;;
  esac
}
get() {  # URL, file
  case $1 in
    s3://?*/?*) ;;
    file:///*) cp -- "${1#file://}" "$2" || fail "there is no $1"; return ;;
    *) fail "neither s3:// nor file:///: $1" ;;
  esac
  [ -n "$s3" ] || s3_client
  for attempt in 1 2 3; do
    ! (from_s3 "$1" "$2") || return 0
    [ "$attempt" = 3 ] || sleep 5
  done
  fail "$1 could not be read: is it there, may this instance's role read it (Iam/S3Access), and is there an S3 endpoint?"
}

# -- trusting --------------------------------------------------------------------------------------------------------
# OpenSSL 3 verifies Ed25519. OpenSSL 1.1.1 (RHEL 8) has no command for it, and in FIPS mode 3.0 has no Ed25519: then Python does.
by_openssl() {  # key in base64, signature, file
  # "|| return": what was written before is the key of the example below, whose private half anybody knows
  printf -- '-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA%s\n-----END PUBLIC KEY-----\n' "$1" > "$work/key.pem" || return 1
  openssl pkeyutl -verify -pubin -inkey "$work/key.pem" -rawin -in "$3" -sigfile "$2" >/dev/null 2>&1
}
by_python() {
  "$verifier" -I -S - "$1" "$2" "$3" <<'PYTHON'
# RFC 8032, 5.1.7, with the checks of 5.1.3: points that are not canonical and s >= L are refused. Nothing here is secret.
import base64, hashlib, sys
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
def add(a, b):
    m, n = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = n - m, d - c, d + c, n + m
    return (e * f % P, g * h % P, f * g % P, e * h % P)
def times(s, a):
    r = (0, 1, 1, 0)
    while s:
        if s & 1:
            r = add(r, a)
        a, s = add(a, a), s >> 1
    return r
def point(raw):
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        raise ValueError
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (not x and sign):
        raise ValueError
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)
def verified(key, signature, message):
    if len(key) != 32 or len(signature) != 64:
        raise ValueError
    a, r, s = point(key), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if s >= L:
        raise ValueError
    y = 4 * pow(5, P - 2, P) % P
    base = point(y.to_bytes(32, "little"))
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    one, two = times(s, base), add(r, times(h, a))
    return (one[0] * two[2] - two[0] * one[2]) % P == 0 and (one[1] * two[2] - two[1] * one[2]) % P == 0
try:
    with open(sys.argv[2], "rb") as signature, open(sys.argv[3], "rb") as message:
        good = verified(base64.b64decode(sys.argv[1], validate=True), signature.read(65), message.read())
except ValueError:
    good = False
sys.exit(0 if good is True else 1)
PYTHON
}
able() {  # a way to verify is one that takes RFC 8032's third example and refuses it for another message
  printf '\257\202' > "$work/said"; printf '\257\203' > "$work/unsaid"
  printf 'YpHWV97sJAJIJ+acOr4BowzlSKKEdDpEXjaA19taw6wY/5tTjRbykK5n92CYTcZZSnwV6XFu0o3AJ77O6h7ECg==' | base64 -d > "$work/heard"
  [ -s "$work/heard" ] && "$1" "$example" "$work/heard" "$work/said" && ! "$1" "$example" "$work/heard" "$work/unsaid"
}
example=/FHNjmIYoaONpH7QAjDwWAgW7RO6MwOsXeuRFUiQgCU=
verifier= way=
if command -v openssl >/dev/null && able by_openssl; then
  way=by_openssl
else
  for verifier in /usr/bin/python3 /usr/libexec/platform-python /usr/bin/python3.[0-9]*; do
    if [ -x "$verifier" ] && able by_python; then way=by_python; break; fi
  done
fi
[ -n "$way" ] || fail "nothing here can verify an Ed25519 signature: neither OpenSSL 3 nor a Python"
verify() {  # file, what it is
  [ "$(wc -c < "$1.sig")" = 64 ] || fail "the signature of $2 is not 64 bytes: sign it with bundle/sign.sh. Nothing was run."
  "$way" "$key" "$1.sig" "$1" || fail "the signature of $2 is not by the key of the cluster's configuration. Nothing was run."
}
unpack() {  # archive, its one folder: plain files and folders below it, each name once
  tar -tzf "$1" --quoting-style=escape > "$work/names" 2>/dev/null && tar -tvzf "$1" > "$work/kinds" 2>/dev/null \
    || fail "${1##*/} is no whole archive"
  [ -s "$work/names" ] || fail "${1##*/} is empty"
  ! grep -qv '^[-d]' "$work/kinds" || fail "${1##*/} holds something other than files and folders: $(grep -v '^[-d]' "$work/kinds" | head -n 1)"
  ! grep -qEv "^$2(/[A-Za-z0-9_+%@-][A-Za-z0-9._+%@-]*)*/?\$" "$work/names" \
    || fail "${1##*/} holds a name that leads elsewhere: $(grep -Ev "^$2(/[A-Za-z0-9_+%@-][A-Za-z0-9._+%@-]*)*/?\$" "$work/names" | head -n 1)"
  [ -z "$(sed 's|/$||' "$work/names" | sort | uniq -d)" ] || fail "${1##*/} holds one name twice"
  tar -xzf "$1" -C "$work" --no-same-owner --no-same-permissions
}
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

for each in bundle site; do
  eval "url=\$$each"
  get "$url" "$work/$each.tar.gz"; get "$url.sig" "$work/$each.tar.gz.sig"
  verify "$work/$each.tar.gz" "$url"
done

source=$work/secure-slurm-$version
unpack "$work/bundle.tar.gz" "secure-slurm-$(printf %s "$version" | sed 's/\./\\./g')"
(cd "$source" && find . -type f ! -path ./SHA256SUMS | sed 's|^\./||' | sort) > "$work/there"
sed 's/^[0-9a-f]\{64\}  //' "$source/SHA256SUMS" | sort | cmp -s - "$work/there" || fail "the bundle does not hold what its SHA256SUMS lists"
(cd "$source" && sha256sum --check --strict --quiet SHA256SUMS >&2) || fail "the bundle does not hold what its SHA256SUMS lists"
[ "$(cat "$source/VERSION")" = "$version" ] || fail "$bundle holds version $(cat "$source/VERSION"): it was renamed"
installed=$(cat "$prefix/VERSION" 2>/dev/null || true)
[ -z "$installed" ] || ! older "$version" "$installed" \
  || fail "$version is older than $installed, which is installed. To go back, uninstall first: $prefix/uninstall.sh (it keeps the configuration)"

# -- the site's configuration: what it changed itself is kept ----------------------------------------------------------
site_files() {
  unpack "$work/site.tar.gz" site
  [ -f "$work/site/SERIAL" ] || fail "the site's archive has no SERIAL: make it with bundle/site.sh"
  number=$(cat "$work/site/SERIAL")
  case $number in ''|0*|*[!0-9]*) fail "the site's SERIAL is no number" ;; esac
  [ -z "$serial" ] || [ "$serial" = "$number" ] || fail "$site has the serial number $number: it was renamed"
  known=$(sed -n 's/^serial //p' "$etc/site.applied" 2>/dev/null || true)
  [ -z "$known" ] || [ "$number" -ge "$known" ] || fail "the site's archive has the serial number $number, and $known is in force here"
  (cd "$work/site" && find . -type f ! -path ./SERIAL | sed 's|^\./||' | sort) > "$work/site.names"
  while read -r name; do
    # the same list is in bundle/site.sh: nothing secret, and nothing that is not configuration
    case $name in
      secure-slurm.yaml|policy.yaml|policy-tests.yaml|vault-ca.crt|ldap-ca.crt|link-ca.crt|nodes-ca.crt|place|manifest.pub|ec2/*.pem|enrol/*.pem) ;;
      *) fail "the site's archive holds $name, which is no configuration that may lie in a bucket" ;;
    esac
  done < "$work/site.names"
  # who a policy is about is nothing for a login node: it takes what its operating system needs to ask the directory
  [ "$role" != login ] || { grep -x 'ldap-ca\.crt' "$work/site.names" > "$work/names" || true; mv "$work/names" "$work/site.names"; }
}
hash_of() { sha256sum < "$1" | cut -d ' ' -f 1; }
apply_site() {
  mkdir -p "$etc"
  trusts=$(hash_of "$etc/ldap-ca.crt" 2>/dev/null || true)
  echo "serial $number" > "$work/applied"
  while read -r name; do
    new=$work/site/$name old=$etc/$name
    echo "$(hash_of "$new") $name" >> "$work/applied"
    mkdir -p "${old%/*}"
    rm -f "$old.site"
    if [ -e "$old" ] && ! cmp -s "$new" "$old"; then
      # ours to replace: what an earlier archive brought, and what the installer ships
      if ! grep -qsFx "$(hash_of "$old") $name" "$etc/site.applied" && ! cmp -s "$old" "$prefix/lib/conf/$name" && ! cmp -s "$old" "$source/conf/$name"; then
        install -m 644 "$new" "$old.site"
        say "warning: $old was changed on this machine and is kept; the site's is in $old.site"
        continue
      fi
    fi
    install -m 644 "$new" "$old.new"; mv -f "$old.new" "$old"
  done < "$work/site.names"
  install -m 644 "$work/applied" "$etc/site.applied"
  # ParallelCluster starts sssd before the first of our stages: without the CA it calls the directory unreachable and does not look
  # again for a while, and after the last one ParallelCluster gives a node up that cannot find an account
  if [ -d /run/systemd/system ] && [ "$(hash_of "$etc/ldap-ca.crt" 2>/dev/null || true)" != "$trusts" ]; then
    systemctl try-restart sssd.service || say "warning: sssd does not start again"
  fi
}

# -- installing ------------------------------------------------------------------------------------------------------
node=
if [ "$role" = compute ]; then
  node=$(cat "$cloud/slurm_plugin/slurm_nodename" 2>/dev/null || hostname -s)
fi
install_it() {
  same="$(hash_of "$work/bundle.tar.gz") $role $node"
  if [ "$(cat "$prefix/INSTALLED" 2>/dev/null || true)" = "$same" ]; then
    say "$version is installed"
  else
    sh "$source/install.sh" --role "$role" ${node:+--node "$node"} > "$work/said-by-install" || { cat "$work/said-by-install"; fail "the installation failed"; }
    echo "$same" > "$prefix/INSTALLED"
    say "$version installed${installed:+ over $installed}"
  fi
}
begin() {  # a unit, as systemd would; without systemd (a container, a test) with the account and the capabilities that it names
  if [ -d /run/systemd/system ]; then
    systemctl enable --quiet "$1" && systemctl restart "$1"
    return
  fi
  unit=$prefix/lib/conf/systemd/$1.service
  line() { sed -n "s/^$1=//p" "$unit" | sed "s|%l|$node|g; s|/opt/secure-slurm|$prefix|g" | tail -n 1; }
  user=$(line User); bounding=$(line CapabilityBoundingSet | tr 'A-Z' 'a-z' | sed 's/cap_/,+/g; s/ //g')
  set -- "$1" setpriv --bounding-set="-all$bounding" --inh-caps=-all --no-new-privs
  [ -z "$user" ] || set -- "$@" --reuid="$user" --regid="$(line Group)" --init-groups
  name=$1; shift
  # shellcheck disable=SC2046
  set -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@" $(line ExecStart)
  if [ "$(line Type)" = oneshot ]; then "$@" 9>&-; return; fi
  name=$name${node:+@$node}
  if [ -e "/run/$name.pid" ]; then
    old=$(cat "/run/$name.pid"); kill "$old" 2>/dev/null || true
    # what it holds is taken by the new one
    for _ in $(seq 300); do kill -0 "$old" 2>/dev/null || break; sleep 0.1; done
  fi
  "$@" </dev/null >> "/var/log/$name.log" 2>&1 9>&- &
  echo $! > "/run/$name.pid"
}
ours() { "$prefix/bin/secure-slurm" "$@"; }
rendered() { ours conf check && ours conf render; }
green() {  # many nodes that boot at once keep each other waiting: one that is not green is asked once more
  ours doctor --role compute --node "$node" --quiet || { sleep 10; ours doctor --role compute --node "$node" --quiet; }
}

private_tmp() {  # none: no class of the policy has /tmp of its jobs elsewhere, and the cluster's configuration no plugin for it
  "$prefix/venv/bin/python3" -I -c 'import json, sys
print(*sorted(set(json.load(open(sys.argv[1]))["private_tmp"].values())))' "$etc/hooks.json"
}
filter() {  # what must be beside slurm.conf before slurmctld starts
  mkdir -p "$slurm_etc"
  [ ! -e "$slurm_etc/job_submit.lua" ] || head -n 1 "$slurm_etc/job_submit.lua" | grep -q "^-- secure-slurm's job_submit filter" \
    || fail "there is another $slurm_etc/job_submit.lua, and Slurm takes one: join the two by hand"
  install -m 644 "$prefix/hooks/job_submit.lua" "$slurm_etc/job_submit.lua.new"
  mv -f "$slurm_etc/job_submit.lua.new" "$slurm_etc/job_submit.lua"
  [ "$(private_tmp)" != none ] || return 0
  # what the site made of it (another BasePath) is kept: only what an earlier bundle brought is replaced
  new=$prefix/lib/conf/slurm/job_container.conf old=$slurm_etc/job_container.conf
  if [ ! -e "$old" ] || [ "$(hash_of "$old")" = "$shipped" ]; then
    install -m 644 "$new" "$old.new"; mv -f "$old.new" "$old"
  elif ! cmp -s "$new" "$old"; then
    say "warning: $old is not the shipped one, and is kept; secure-slurm doctor says on a node whether it will do"
  fi
}
hooks() {  # 99: Slurm runs the names backwards and stops at the first that fails, so ours come before the vendor's 90
  for kind in prolog epilog; do
    [ -d "$slurm_etc/scripts/$kind.d" ] || fail "there is no $slurm_etc/scripts/$kind.d: is this a head node of ParallelCluster, and past its configuration?"
    ln -sfn "$prefix/hooks/$kind" "$slurm_etc/scripts/$kind.d/99_secure_slurm"
  done
}

enrolled() {  # 2: the site's nodes do not enrol, and then the node's certificate is in its image
  status=0
  ours node enrol --node "$node" --wait 120 || status=$?
  [ $status = 0 ] || { [ $status = 2 ] && [ -s "$etc/node-$node.crt" ] && [ -s "$etc/node-$node.key" ]; }
}

shipped=$(hash_of "$prefix/lib/conf/slurm/job_container.conf" 2>/dev/null || true)
site_files
case $role.$stage in
  login.start|compute.start)
    # what is installed needs what comes after this stage; the CA of the directory is needed now, by sssd
    apply_site
    say "$version is verified" ;;
  login.configured)
    apply_site; install_it ;;
  head.start)
    apply_site; install_it; rendered || fail "the site's configuration cannot be used"; filter
    say "the filter is in $slurm_etc" ;;
  head.configured)
    apply_site; install_it; rendered || fail "the site's configuration cannot be used"; filter; hooks
    # a new cluster's Vault knows this head node only after "vault init": tagged jobs are refused until then, and that is no reason
    # to take the whole cluster down again
    while read -r unit; do
      begin "$unit" </dev/null || say "warning: $unit does not start"
    done < "$prefix/UNITS"
    ours doctor --role head --quiet || say "warning: this head node is not green; docs/parallelcluster.md says what is left to do" ;;
  compute.configured)
    apply_site
    if [ ! -e "$etc/place" ]; then
      region=$(setting cfn_region)
      [ -n "$region" ] || fail "no cfn_region in $cloud/cfnconfig, and no place in the site's archive: this node does not know where it is"
      echo "$region" > "$etc/place"
    fi
    install_it
    rendered || fail "the site's configuration cannot be used"
    # closed before there is anything that a user could take
    begin secure-slurm-imds || fail "the metadata service is open to users"
    enrolled || fail "this node was not enrolled"
    # before there is any user; whether a node without scratch may take jobs is the doctor's to say, below
    ours node store --prepare --node "$node" || say "warning: there is nothing for scratch to lie on"
    while read -r unit; do
      [ "$unit" = secure-slurm-imds ] || begin "$unit" </dev/null || fail "$unit does not start"
    done < "$prefix/UNITS"
    green || fail "this node is not green, and takes no job" ;;
esac
say "$role $stage: done"
