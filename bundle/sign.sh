#!/bin/sh
# sign.sh KEY FILE...: sign each file with an Ed25519 private key (PEM): FILE.sig, 64 bytes. Prints the public key as the custom actions
# take it. A key is made by: openssl genpkey -algorithm ed25519 -out KEY. Keep it off the cluster and out of the bucket. Needs OpenSSL 3.
set -eu
[ $# -gt 1 ] || { echo "usage: sign.sh KEY FILE..." >&2; exit 2; }
key=$1; shift
public=$(openssl pkey -in "$key" -pubout -outform DER | base64 -w 0)
case $public in MCowBQYDK2VwAyEA*) ;; *) echo "sign.sh: $key is no Ed25519 key" >&2; exit 1 ;; esac
for file; do
  openssl pkeyutl -sign -rawin -inkey "$key" -in "$file" -out "$file.sig.new"
  mv "$file.sig.new" "$file.sig"
done
echo "${public#MCowBQYDK2VwAyEA}"
