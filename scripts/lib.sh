# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
# What the scripts share: where things are, how they speak, how they stop, and
# a private apt that leaves the system's own sources and lists alone.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$ROOT/build
STAMPS=$BUILD/stamps
# Administrator's programs (mkfs.vfat, lspci) are on no ordinary user's path.
PATH=$BUILD/tools/bin:$PATH:/usr/sbin:/sbin
export PATH DEBIAN_FRONTEND=noninteractive

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# Runs a quiet command; shows all that it said if it fails.
quietly() {
	local log
	log=$(mktemp)
	if ! "$@" >"$log" 2>&1; then
		cat "$log" >&2
		rm -f "$log"
		die "failed: $*"
	fi
	rm -f "$log"
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo --preserve-env=DEBIAN_FRONTEND "$@"
	else
		die "must install packages: run as root, or install sudo"
	fi
}

# A step is done if its stamp holds the key that the step would write: the
# versions and scripts that its result depends on.
stamped() { [ -f "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]; }

stamp() {
	mkdir -p "$STAMPS"
	printf '%s\n' "$2" >"$STAMPS/$1"
}

key_of() { cat "$@" | sha256sum | cut -d' ' -f1; }

# Debian's code name: bookworm (12) or trixie (13). Later ones are taken to be
# like trixie.
debian() {
	local id='' codename=''
	if [ -r /etc/os-release ]; then
		# shellcheck source=/dev/null
		id=$(. /etc/os-release && echo "${ID:-}")
		# shellcheck source=/dev/null
		codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	fi
	[ "$id" = debian ] || die "this is '${id:-unknown}', not Debian: install the packages named in scripts/install by hand"
	[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"
	case $codename in
	bullseye | buster | '') die "Debian '$codename' is too old: 12 or 13 is needed" ;;
	esac
	echo "$codename"
}

# apt with sources of our own, all signed by Debian's keys; the lists lie under
# build/apt.
APT=(
	-o Dir::Etc::SourceList="$BUILD/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
	-o Dir::State::Lists="$BUILD/apt/lists"
	-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
	-o APT::Sandbox::User= -o APT::Update::Post-Invoke-Success::= -o Acquire::Languages=none
	-o Acquire::Retries=3 -o Dpkg::Use-Pty=0
	-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
	-o Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled=false
	-o Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled=false
	-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false
)

# Where the system itself gets Debian from: the mirror ($1 = debian) or the
# security archive ($1 = debian-security).
mirror() {
	# shellcheck disable=SC2016 # apt fills these in, not the shell
	apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk -v end="/$1/?\$" '$1 == "main" && $2 ~ end { print $2; exit }'
}

# Writes the private sources and reads their lists: Debian as the system has it,
# and the backports that Linux 7.2 (and on Debian 12 QEMU) come from.
private_sources() {
	local codename=$1 uri security key=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -r $key ] || die "$key is missing: install debian-archive-keyring"
	uri=$(mirror debian)
	security=$(mirror debian-security)
	[ -n "$uri" ] || die "apt names no Debian mirror: check /etc/apt/sources.list"
	mkdir -p "$BUILD/apt/lists/partial"
	{
		echo "deb [signed-by=$key] $uri $codename main"
		echo "deb [signed-by=$key] $uri $codename-updates main"
		[ -z "$security" ] || echo "deb [signed-by=$key] $security $codename-security main"
		[ "$codename" != bookworm ] || echo "deb [signed-by=$key] $uri bookworm-backports main"
		echo "deb [signed-by=$key] $uri trixie-backports main"
	} >"$BUILD/apt/sources.list"
	say "reading the package lists of $(awk '{ printf "%s%s", s, $4; s = ", " }' "$BUILD/apt/sources.list") into build/apt"
	quietly apt-get "${APT[@]}" update
}
