#!/usr/bin/env bash
# Unpacks Debian's llama-server into a folder, beside the system, for the tests of worker-openai:
#
#   contributing/llama-server.sh FOLDER    → FOLDER/bin/llama-server
#
# Debian 12 has no package of it. The newest Debian has, with a C library of its own, so that the
# program is started through that library's loader. Nothing is installed into the system. It takes
# apt-get, dpkg-deb, and about 60 MB.
set -euo pipefail
folder=$(mkdir -p "${1:?usage: llama-server.sh FOLDER}" && cd "$1" && pwd)
[ -x "$folder/bin/llama-server" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null && [ "$(dpkg --print-architecture)" = amd64 ] ||
  { echo "llama-server.sh needs Debian or a relative of it, on amd64. Elsewhere install llama-server by hand." >&2; exit 1; }
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 '/debian/\?$' || true)
mkdir -p "$folder"/apt/{lists/partial,cache/archives/partial} "$folder"/{debs,root,bin}
echo "deb ${mirror:-http://deb.debian.org/debian} sid main" >"$folder/apt/sources.list"
apt=(apt-get -qq -o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o Dir::State::Lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache" -o APT::Sandbox::User="$(id -un)")
"${apt[@]}" update
(cd "$folder/debs" && "${apt[@]}" download llama.cpp-tools libllama0 libggml0 libc6 libstdc++6 libgcc-s1 libgomp1 libssl3t64 libzstd1 zlib1g)
for deb in "$folder"/debs/*.deb; do dpkg-deb -x "$deb" "$folder/root"; done
lib=$folder/root/usr/lib/x86_64-linux-gnu
# The program looks for the engine's variants for processors beside itself, which is the loader here.
find "$lib" -name 'libggml-cpu-*.so' -exec ln -sf {} "$lib/" \;
cat >"$folder/bin/llama-server" <<END
#!/bin/sh
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib:$lib/llama:$lib/ggml" "$folder/root/usr/bin/llama-server" "\$@"
END
chmod +x "$folder/bin/llama-server"
"$folder/bin/llama-server" --version
