package remote

// All scripts that ever run on another machine: fixed, for a POSIX shell, with quoted arguments.
// They read names and paths only from their arguments.
const (
	// scriptFlush flushes files and folders to disk, or everything if sync accepts no names.
	scriptFlush = `flush() { sync "$@" 2>/dev/null || sync; }
`

	// scriptLook prints the machine's facts, one per line.
	scriptLook = `LC_ALL=C; export LC_ALL
echo "os=$(uname -s)"; echo "arch=$(uname -m)"; echo "home=$HOME"; echo "uid=$(id -u)"; echo "user=$(id -un 2>/dev/null)"
echo "disk=$(df -Pk "$HOME" 2>/dev/null | awk 'NR==2 {print $4}')"
if [ "$(id -u)" != 0 ] && command -v sudo >/dev/null 2>&1 && sudo -n true </dev/null >/dev/null 2>&1; then echo sudo=1; fi
if [ -d /run/systemd/system ]; then
  echo systemd=1
  XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}; export XDG_RUNTIME_DIR
  if systemctl --user show-environment >/dev/null 2>&1; then echo systemd_user=1; fi
fi
for t in sha256sum shasum; do if command -v $t >/dev/null 2>&1; then echo "sum=$t"; break; fi; done
for m in "$HOME/.local/lib/rbee/installed" /usr/local/lib/rbee/installed; do if [ -r "$m" ]; then echo "manifest=$m"; fi; done
for p in "$HOME/.local/bin/rbee" /usr/local/bin/rbee; do
  if [ -x "$p" ]; then echo "version=$("$p" --version 2>/dev/null | head -n 1)"; break; fi
done
exit 0`

	// scriptRead prints a file, or nothing if it is missing.
	scriptRead = `if [ -f "$1" ]; then cat "$1"; fi`

	// scriptIdentity prints "yes" if the data folder belongs to a machine of a cluster.
	scriptIdentity = `if [ -d "$1/cluster" ]; then echo yes; fi`

	// scriptOthers lists a folder's entries except one. Arguments: folder but.
	scriptOthers = `for p in "$1"/* "$1"/.[!.]*; do
  if [ -e "$p" ] && [ "$p" != "$2" ]; then echo "$p"; fi
done
exit 0`

	// scriptStrangers lists existing entries that were not installed. Arguments: link lib data.
	scriptStrangers = `if [ -e "$1" ] || [ -L "$1" ]; then
  case "$(readlink "$1" 2>/dev/null)" in "$2"/*) ;; *) echo "$1" ;; esac
fi
if [ -d "$3/cluster" ]; then echo "$3"; fi
exit 0`

	// scriptFolders creates folders and prints those that it created. Arguments: umask folder…
	scriptFolders = scriptFlush + `umask "$1"; shift
for d; do
  if [ ! -d "$d" ]; then mkdir "$d" && flush "${d%/*}/" && echo "$d" || exit 1; fi
done`

	// scriptWrite writes stdin to a file atomically and durably. Arguments: file mode.
	scriptWrite = scriptFlush + `umask 077
if cat > "$1.new" && chmod "$2" "$1.new" && flush "$1.new" && mv -f "$1.new" "$1" && flush "${1%/*}/"; then exit 0; fi
rm -f "$1.new"; exit 1`

	// scriptSums prints the SHA-256 of files, "-" for a missing one. Arguments: tool file…
	scriptSums = `t=$1; shift
for f; do
  if [ ! -f "$f" ]; then echo -; continue; fi
  case $t in sha256sum) sha256sum < "$f" ;; *) shasum -a 256 < "$f" ;; esac | cut -c1-64
done`

	// scriptPublish replaces a folder with another. Arguments: from to.
	scriptPublish = scriptFlush + `rm -rf "$2" && mv "$1" "$2" && flush "${2%/*}/"`

	// scriptLink points a link to a program, atomically. Arguments: target link.
	scriptLink = scriptFlush + `rm -f "$2.new" && ln -s "$1" "$2.new" && mv -f "$2.new" "$2" && flush "${2%/*}/"`

	// scriptBuilds lists the other builds in a folder. Arguments: lib build.
	scriptBuilds = `for d in "$1"/* "$1"/.partial-*; do
  if [ -d "$d" ] && [ "$d" != "$1/$2" ]; then echo "$d"; fi
done
exit 0`

	// scriptRemove removes its arguments.
	scriptRemove = `rm -rf "$@"`

	// scriptRemoveFolders removes empty folders.
	scriptRemoveFolders = `for d; do rmdir "$d" 2>/dev/null; done; exit 0`

	// scriptUser creates the user of the system service, with access to graphics cards, and reports
	// whether it did. Arguments: name home.
	scriptUser = `if ! id "$1" >/dev/null 2>&1; then
  useradd --system --user-group --no-create-home --home-dir "$2" --shell /usr/sbin/nologin "$1" && echo made || exit 1
fi
for g in video render; do if getent group $g >/dev/null 2>&1; then usermod -aG $g "$1" || exit 1; fi; done
exit 0`

	// scriptRemoveUser removes that user.
	scriptRemoveUser = `if id "$1" >/dev/null 2>&1; then userdel "$1" >/dev/null 2>&1; fi; exit 0`

	// scriptOwn makes the user of the system service own folders. Arguments: user folder…
	scriptOwn = `u=$1; shift; chown -R "$u:" "$@" && chmod 700 "$@"`

	// scriptJoin joins the cluster of the token on stdin. Arguments: program configuration.
	scriptJoin = `exec "$1" cluster join -config "$2" -`

	// scriptService starts, stops or queries the service. Arguments: kind action link configuration
	// pid-file log-file unit.
	scriptService = `kind=$1 action=$2 link=$3 conf=$4 pid=$5 log=$6 unit=$7
XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}; export XDG_RUNTIME_DIR
ctl() { if [ $kind = systemd-user ]; then systemctl --user "$@"; else systemctl "$@"; fi; }
args() { if [ -r "/proc/$1/cmdline" ]; then tr '\000' ' ' < "/proc/$1/cmdline"; else ps -p "$1" -o args= 2>/dev/null; fi; }
running() {
  p=$(cat "$pid" 2>/dev/null)
  case $p in ''|*[!0-9]*) return 1 ;; esac
  kill -0 "$p" 2>/dev/null || return 1
  case "$(args "$p")" in *" agent -config $conf"*) return 0 ;; esac
  return 1
}
await_end() {
  i=0
  while running; do
    i=$((i+1)); if [ $i -gt 300 ]; then echo "process $p does not end" >&2; exit 1; fi
    sleep 0.2 2>/dev/null || sleep 1
  done
}
case $kind.$action in
systemd-*.start) ctl daemon-reload && ctl enable rbee.service >/dev/null 2>&1; ctl start --no-block rbee.service ;;
systemd-*.restart) ctl daemon-reload && ctl enable rbee.service >/dev/null 2>&1; ctl restart --no-block rbee.service ;;
systemd-*.stop) ctl stop rbee.service ;;
systemd-*.state) case "$(ctl is-active rbee.service 2>/dev/null)" in active|activating|reloading|deactivating) echo running ;; *) echo stopped ;; esac ;;
systemd-*.log) if [ $kind = systemd-user ]; then journalctl --user -u rbee.service -n 20 --no-pager -o cat; else journalctl -u rbee.service -n 20 --no-pager -o cat; fi ;;
systemd-*.remove) ctl disable --now rbee.service >/dev/null 2>&1; rm -f "$unit"; ctl daemon-reload; ctl reset-failed rbee.service >/dev/null 2>&1; exit 0 ;;
systemd-user.linger) loginctl enable-linger >/dev/null 2>&1 || echo no ;;
launchd.start) launchctl enable "gui/$(id -u)/org.rbee.agent" 2>/dev/null; launchctl bootstrap "gui/$(id -u)" "$unit" 2>/dev/null || launchctl bootstrap "user/$(id -u)" "$unit" ;;
launchd.restart) for d in gui user; do launchctl bootout "$d/$(id -u)/org.rbee.agent" 2>/dev/null; done
  launchctl bootstrap "gui/$(id -u)" "$unit" 2>/dev/null || launchctl bootstrap "user/$(id -u)" "$unit" ;;
launchd.stop|launchd.remove) for d in gui user; do launchctl bootout "$d/$(id -u)/org.rbee.agent" 2>/dev/null; done
  if [ $action = remove ]; then rm -f "$unit"; fi; exit 0 ;;
launchd.state) if launchctl list org.rbee.agent >/dev/null 2>&1; then echo running; else echo stopped; fi ;;
none.start|none.restart)
  if [ $action = restart ] && running; then kill "$p" && await_end; fi
  if ! running; then
    umask 077
    nohup "$link" agent -config "$conf" </dev/null >>"$log" 2>&1 &
    echo $! > "$pid"
  fi ;;
none.stop|none.remove) if running; then kill "$p" && await_end; fi; rm -f "$pid" ;;
none.state) if running; then echo running; else echo stopped; fi ;;
none.log|launchd.log) tail -n 20 "$log" 2>/dev/null; exit 0 ;;
*) echo "unknown service" >&2; exit 2 ;;
esac`
)
