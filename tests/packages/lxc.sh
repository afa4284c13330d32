#!/usr/bin/env bash
# The system container: booted, synced with, and logged in to by somebody of a real LDAP directory.
#
#   tests/packages/lxc.sh PACKAGE
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

image=sync-server-system
step 'a system container'
docker tag sync-server-test/trixie debian:trixie-slim
"$root/packaging/lxc/system" "$1" "$image" >"$work/said" 2>&1 || fail "no image: $(cat "$work/said")"
"$root/packaging/lxc/archive" "$image" "$work/system.oci.tar"
python3 "$root/tests/packages/lxc.py" "$work/system.oci.tar" amd64 system

box=$(fresh system)
start "$image" "$box"
export place=$box
in_box() { docker exec "$box" "$@"; }
eventually in_box systemctl --quiet is-active sync-server.service
said=$(in_box sync-server admin add-client 2>/dev/null)
device a "$said"
device b "$said"
syncs a b
same "$(in_box systemctl is-active sssd.service || true)" inactive 'logins by LDAP that nobody asked for'

step 'logins by LDAP'
docker exec --env DEBIAN_FRONTEND=noninteractive "$box" sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends slapd ldap-utils' \
    >"$work/said" 2>&1 || fail "no LDAP server: $(tail -n 5 "$work/said")"
docker exec -i "$box" sh -c 'cat >/root/people.ldif' <<'LDIF'
dn: ou=people,dc=nodomain
objectClass: organizationalUnit
ou: people

dn: uid=alice,ou=people,dc=nodomain
objectClass: inetOrgPerson
objectClass: posixAccount
uid: alice
cn: Alice
sn: Alice
uidNumber: 20001
gidNumber: 100
homeDirectory: /home/alice
LDIF
in_box sh -c 'systemctl stop slapd; slapadd -n 1 -l /root/people.ldif; chown -R openldap:openldap /var/lib/ldap
    systemctl start slapd' >"$work/said" 2>&1 || fail "no directory: $(cat "$work/said")"
# A password is not sent in the clear, so the directory has a certificate that the container trusts.
# The client knows localhost by the name of its machine.
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost,DNS:tasks -days 2 \
    -keyout "$work/key.pem" -out "$work/directory.crt" 2>/dev/null
docker cp "$work/key.pem" "$box:/etc/ldap/key.pem"
docker cp "$work/directory.crt" "$box:/usr/local/share/ca-certificates/directory.crt"
docker exec -i "$box" sh -c 'chown openldap /etc/ldap/key.pem; chmod 644 /usr/local/share/ca-certificates/directory.crt
    update-ca-certificates; ldapmodify -Q -Y EXTERNAL -H ldapi:///' >"$work/said" 2>&1 <<'LDIF' || fail "no certificate: $(cat "$work/said")"
dn: cn=config
changetype: modify
replace: olcTLSCertificateKeyFile
olcTLSCertificateKeyFile: /etc/ldap/key.pem
-
replace: olcTLSCertificateFile
olcTLSCertificateFile: /usr/local/share/ca-certificates/directory.crt
LDIF
in_box sh -c 'printf "LDAP_URI=ldap://localhost\nLDAP_SEARCH_BASE=dc=nodomain\n" >/etc/environment'
docker restart --time 60 "$box" >/dev/null
booted "$box"
eventually in_box getent passwd alice
same "$(in_box stat -c %a /etc/sssd/sssd.conf)" 640 'the file with the password of the directory'
! in_box test -e /home/alice || fail 'a home before the first login'
same "$(in_box su --login alice -c pwd 2>/dev/null | tail -n 1)" /home/alice 'the home after the first login'
syncs b a
