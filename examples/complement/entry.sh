#!/bin/sh
# What Complement's containers start with, each time anew: a certificate for $SERVER_NAME from the authority that is mounted
# at /complement/ca, then the server. Clients come to port 8008, other servers to port 8448.
set -eu
name=${SERVER_NAME:-localhost}
# Where everything is in a container; elsewhere a test says so.
ca=${COMPLEMENT_CA:-/complement/ca}
appservices=${COMPLEMENT_APPSERVICES:-/complement/appservice}
data=${DOORSTEP_DATA:-/data}
certificate=${DOORSTEP_CERTIFICATE:-/certificate}
clients=${DOORSTEP_LISTEN:-0.0.0.0:8008}
servers=${DOORSTEP_LISTEN_TLS:-0.0.0.0:8448}

mkdir -p "$certificate"
cd "$certificate"
case $name in
*[!0-9.]*) address=DNS:$name ;;
*) address=IP:$name ;;
esac
openssl ecparam -name prime256v1 -genkey -noout -out server.key
openssl req -new -sha256 -key server.key -subj "/CN=$name" -out server.csr
printf 'subjectAltName=%s\n' "$address" > server.ext
# The folder of the authority may be read-only, so its serial number is made up.
openssl x509 -req -in server.csr -CA "$ca/ca.crt" -CAkey "$ca/ca.key" -set_serial "0x$(openssl rand -hex 8)" \
    -extfile server.ext -days 1 -sha256 -out server.crt 2> /dev/null

# Only some tests have application services, whose registrations are put there.
if [ -d "$appservices" ]; then
    set -- --appservice "$appservices"
else
    set --
fi

exec doorstep serve "$@" --name "$name" --data "$data" --public-url "http://$name:8008" \
    --listen "$clients" --listen-tls "$servers" --tls-cert server.crt --tls-key server.key \
    --trust-ca "$ca/ca.crt" --allow-private-addresses \
    --registration open --registration-secret complement --no-rate-limits
