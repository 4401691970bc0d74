#!/bin/bash
# compare.sh [FOLDER [SERVER...]]: runs the suite against vhbad, nbdkit, qemu-nbd and
# nbd-server, those that are installed, and puts the comparison into
# docs/protocol-support.md between its markers. The results stay in FOLDER as JSON.
# With servers named, only they run; of the others FOLDER has the results already.
# About ten minutes: servers that hang are waited for.
set -eu -o pipefail
cd "$(dirname "$0")/../.."
root=$PWD
out=${1:-$(mktemp -d)}
only=" ${*:2} "
mkdir -p "$out/tls"
work=$(mktemp -d)
port=${PORT:-10910} # and the ports after it
pids=()
stop() {
  for p in ${pids[@]+"${pids[@]}"}; do kill "$p" 2>/dev/null || true; done
  wait
  pids=()
}
trap 'stop; rm -rf "$work"' EXIT

# certificates makes an authority, a server and a client, in the files that NBD
# programs want.
certificates() {
  cd "$out/tls"
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/CN=test authority' -keyout ca-key.pem -out ca-cert.pem 2>/dev/null
  local who
  for who in server client; do
    openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout $who-key.pem -out $who.csr 2>/dev/null
    printf '%s\n' 'subjectAltName=DNS:localhost,IP:127.0.0.1' "extendedKeyUsage=${who}Auth" 'keyUsage=digitalSignature,keyEncipherment' >ext
    openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 30 -extfile ext -out $who-cert.pem 2>/dev/null
  done
  cd "$root"
}

# background LOG COMMAND...: starts a server.
background() {
  local log=$1
  shift
  "$@" >"$work/$log" 2>&1 &
  pids+=($!)
}

# listening PORT...: waits until each port takes connections.
listening() {
  for p in "$@"; do
    for _ in $(seq 100); do
      if (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then continue 2; fi
      sleep 0.1
    done
    echo "nothing listens on port $p; see $work" >&2
    trap - EXIT
    stop
    exit 1
  done
}

# suite NAME SERVER URI...
suite() {
  local name=$1 server=$2
  shift 2
  echo "== $server: $*"
  rm -f "$out/$name.json"
  "$work/suite" -test.run 'TestURI$' -test.timeout 60m -server "$server" -results "$out/$name.json" -uri "$*" >"$out/$name.txt" 2>&1 || true
  grep -E '^(fail|hang)|rows:' "$out/$name.txt" || true
  if [ ! -s "$out/$name.json" ]; then
    echo "no results; see $out/$name.txt" >&2
    exit 1
  fi
  reports+=("$out/$name.json")
}

certificates
go test -c -o "$work/suite" ./nbd/conformance
go build -o "$work/vhbad" ./cmd/vhbad
tls="tls-certificates=$out/tls&tls-hostname=localhost"
a=$port b=$((port + 1)) c=$((port + 2)) d=$((port + 3)) e=$((port + 4))
reports=()

# wanted NAME PROGRAM: it is to run, and there.
wanted() {
  if [ "$only" != "  " ] && [[ $only != *" $1 "* ]]; then
    if [ -s "$out/$1.json" ]; then reports+=("$out/$1.json"); fi
    return 1
  fi
  command -v "$2" >/dev/null || {
    echo "$1 is not installed" >&2
    return 1
  }
}

vhbad() { background "vhbad.$1" "$work/vhbad" serve --http none --admin none --listen "tcp://127.0.0.1:$1" "${@:2}"; }
if wanted vhbad "$work/vhbad"; then
  vhbad $a --disk "disk0=memory:5GiB,description=scratch" --disk disk1=memory:64MiB
  vhbad $b --disk disk0=memory:64MiB,read-only
  vhbad $c --disk disk0=memory:64MiB --disk disk1=memory:4MiB,tls-only --tls optional --tls-certificates "$out/tls"
  vhbad $d --disk disk0=memory:64MiB --tls required --tls-certificates "$out/tls"
  listening $a $b $c $d
  suite vhbad "vhbad" "nbd://127.0.0.1:$a/disk0" "nbd://127.0.0.1:$b/disk0" "nbd://127.0.0.1:$c/disk0?$tls" "nbds://127.0.0.1:$d/disk0?$tls"
  stop
fi

if wanted nbdkit nbdkit; then
  nbdkit() { background "nbdkit.$1" "$(type -P nbdkit)" -f -i 127.0.0.1 -p "$@"; }
  nbdkit $a memory 5G
  nbdkit $b -r memory 64M
  nbdkit $c --tls=on --tls-certificates="$out/tls" memory 64M
  nbdkit $d --tls=require --tls-certificates="$out/tls" memory 64M
  nbdkit $e --filter=blocksize-policy memory 64M blocksize-minimum=4096 blocksize-preferred=4096 blocksize-maximum=32M blocksize-error-policy=error
  listening $a $b $c $d $e
  suite nbdkit "$(command nbdkit --version | cut -d' ' -f1,2)" "nbd://127.0.0.1:$a/disk0" "nbd://127.0.0.1:$b/disk0" "nbd://127.0.0.1:$c/disk0?$tls" "nbds://127.0.0.1:$d/disk0?$tls" "nbd://127.0.0.1:$e/disk0"
  stop
fi

if wanted qemu-nbd qemu-nbd; then
  truncate -s 5G "$work/big"
  truncate -s 64M "$work/small" "$work/secure"
  qemu() { background "qemu.$1" qemu-nbd -t -e 64 -f raw -x disk0 -b 127.0.0.1 -p "$@"; }
  qemu $a --discard=unmap "$work/big"
  qemu $b -r "$work/small"
  qemu $c --object "tls-creds-x509,id=tls0,dir=$out/tls,endpoint=server,verify-peer=off" --tls-creds tls0 "$work/secure"
  listening $a $b $c
  suite qemu-nbd "$(qemu-nbd --version | head -1 | cut -d' ' -f1,2)" "nbd://127.0.0.1:$a/disk0" "nbd://127.0.0.1:$b/disk0" "nbds://127.0.0.1:$c/disk0?$tls"
  stop
fi

if wanted nbd-server nbd-server; then
  truncate -s 5G "$work/n.big"
  truncate -s 64M "$work/n.small"
  # server PORT EXTRA...: lines for the [generic] section.
  server() {
    {
      printf '[generic]\nlistenaddr=127.0.0.1\nallowlist=true\nuser=%s\ngroup=%s\nport=%s\n' "$(id -un)" "$(id -gn)" "$1"
      printf '%s\n' "${@:2}"
      printf '[disk0]\nexportname=%s\nflush=true\nfua=true\ntrim=true\n' "$work/n.big"
      printf '[ro]\nexportname=%s\nreadonly=true\n' "$work/n.small"
    } >"$work/nbd-server.$1"
    # It detaches. A process of its that meets the end of a TLS connection goes on
    # for ever, and takes all of a processor: so each gets one second of one.
    (
      ulimit -t 1
      command nbd-server -C "$work/nbd-server.$1" -p "$work/pid.$1" >"$work/log.$1" 2>&1
    )
  }
  server $a
  server $c "certfile=$out/tls/server-cert.pem" "keyfile=$out/tls/server-key.pem" "cacertfile=$out/tls/ca-cert.pem" force_tls=true
  pids+=("$(cat "$work/pid.$a")" "$(cat "$work/pid.$c")")
  listening $a $c
  suite nbd-server "nbd-server $(command nbd-server -V 2>&1 | grep -oE '[0-9]+\.[0-9.]+' | head -1)" "nbd://127.0.0.1:$a/disk0" "nbd://127.0.0.1:$a/ro" "nbds://127.0.0.1:$c/disk0?$tls"
  stop
fi

"$work/suite" -test.run 'TestMarkdown$' -markdown "$(IFS=,; echo "${reports[*]}")" | sed '/^PASS$/d' >"$work/table"
"$work/suite" -test.run 'TestRequirementsMarkdown$' -requirements | sed '/^PASS$/d' >"$work/counts"
awk -v table="$work/table" -v counts="$work/counts" '
  function put(file) { skip = 1; print ""; while ((getline line < file) > 0) print line; print "" }
  /<!-- (results|requirements) end -->/ { skip = 0 }
  !skip { print }
  /<!-- results begin/ { put(table) }
  /<!-- requirements begin/ { put(counts) }
' docs/protocol-support.md >"$work/doc"
cat "$work/doc" >docs/protocol-support.md
echo "results in $out"
