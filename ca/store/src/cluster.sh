# A PostgreSQL cluster that lives as long as whoever holds this script's standard input, and leaves nothing behind.
# Arguments: the directory of PostgreSQL's programs, and the TCP port. Commands come as lines, answers as lines.
set -eu
programs=$1 port=$2
home=$(mktemp -d "${TMPDIR:-/tmp}/rhizome-pg.XXXXXX")
pid=
stop() {
  if [ -n "$pid" ]; then
    kill "-$1" "$pid" 2>/dev/null || true
    # One that was frozen hears it only when it goes on.
    pkill -CONT -P "$pid" 2>/dev/null || true
    kill -CONT "$pid" 2>/dev/null || true
    wait "$pid" || true
    pid=
  fi
}
trap 'stop QUIT; rm -rf "$home"' EXIT
trap 'exit 1' HUP INT TERM
"$programs/initdb" --pgdata "$home/data" --username tests --auth-local trust --auth-host scram-sha-256 \
  --encoding UTF8 --locale C --no-sync --no-instructions >"$home/initdb.log" 2>&1 || { cat "$home/initdb.log" >&2; exit 1; }
cat >>"$home/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$home'
max_connections = 200
shared_buffers = 64MB
CONF
start() {
  [ -z "$pid" ] || return 0
  "$programs/postgres" -D "$home/data" >>"$home/log" 2>&1 &
  pid=$!
  n=0
  until "$programs/pg_isready" -q -h "$home" -p "$port" -t 1; do
    n=$((n + 1))
    if [ $n -gt 600 ] || ! kill -0 "$pid" 2>/dev/null; then tail -50 "$home/log" >&2; exit 1; fi
    sleep 0.05
  done
}
start
echo "$home"
while read -r word; do
  case $word in
    start) start ;;
    stop) stop INT ;;
    crash) stop QUIT ;;
    freeze) pkill -STOP -P "$pid" || true; kill -STOP "$pid" ;;
    thaw) kill -CONT "$pid"; pkill -CONT -P "$pid" || true ;;
    tls) cp "$home/given/"* "$home/data/"; chmod 0600 "$home/data/server.key"
      echo "ssl = on" >>"$home/data/postgresql.conf" ;;
  esac
  echo done
done
