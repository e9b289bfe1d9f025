#!/bin/sh
# Builds the image selfplay/base:2 from nothing but a Debian mirror: debootstrap into a folder, piped into `docker import`.
# Needs root, debootstrap and a running docker engine. MIRROR and SUITE override what debootstrap takes by itself.
set -eu

TAG="${TAG:-selfplay/base:2}"
SUITE="${SUITE:-bookworm}" # the release that the tests ran on
PACKAGES="python3,python3-venv,python3-dev,git,gcc,libc6-dev,make,patch,procps,ca-certificates,ed,less,file,findutils,diffutils"

fail() { echo "build.sh: $1" >&2; exit 1; }
command -v debootstrap >/dev/null || fail "debootstrap not found. Install it: apt-get install debootstrap"
command -v docker >/dev/null || fail "docker not found. Install it: apt-get install docker.io"
docker version >/dev/null 2>&1 || fail "no docker engine answers. Start it: service docker start (or: dockerd &)"
[ "$(id -u)" = 0 ] || fail "debootstrap needs root. Run: sudo $0"

work="$(mktemp -d)"
trap 'rm -rf --one-file-system "$work"' EXIT INT TERM
root="$work/root"

# shellcheck disable=SC2086  # an unset mirror must vanish, not become an empty argument
debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$root" ${MIRROR:-}

rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/* \
    "$root"/usr/share/locale/* "$root"/var/log/*
# Nothing that lies in an image may hold a repository's source, and nothing a sandbox runs needs these packages.
rm -rf "$root"/usr/lib/python3/dist-packages/* "$root"/usr/local/lib/python3*/dist-packages/*
mkdir -p "$root/testbed" "$root/submit" "$root/opt/env" "$root/selfplay"
# Environments are built as the first of these users into /opt/env; everywhere else a sandbox's root is read-only. Each
# sandbox has another one of them (USERS in selfplay/sandbox/docker_container.py).
for number in $(seq 64321 65533); do
    echo "sandbox:x:$number:$number:sandbox:/tmp:/bin/bash" >>"$root/etc/passwd"
    echo "sandbox:x:$number:" >>"$root/etc/group"
done
chmod 0777 "$root/testbed" "$root/submit" "$root/opt/env"
# The workspace belongs to another user than the one that runs git; only a system or global setting is heard for this.
printf '[safe]\n\tdirectory = *\n[user]\n\tname = sandbox\n\temail = sandbox@localhost\n[init]\n\tdefaultBranch = main\n' >"$root/etc/gitconfig"

tar --numeric-owner -C "$root" -c . | docker import \
    --change 'ENV PATH=/opt/env/bin:/usr/local/bin:/usr/bin:/bin' \
    --change 'ENV LANG=C.UTF-8' \
    --change 'LABEL selfplay.image=base' \
    - "$TAG" >/dev/null
echo "$TAG is ready"
