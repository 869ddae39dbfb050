#!/usr/bin/env bash
# Makes bin/tapyard_VERSION_ARCH.deb of the programs in bin/: make deb.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0~$(git log -1 --format=%cd.%h --date=format:%Y%m%d 2>/dev/null || echo local)
arch=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

bin/tapyard install --root "$root" --prefix /usr
gzip -9n "$root"/usr/share/man/man1/*.1
install -Dm644 LICENSE "$root/usr/share/doc/tapyard/copyright"

mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<EOF
Package: tapyard
Version: $version
Architecture: $arch
Maintainer: Tapyard <tapyard@localhost>
Section: net
Priority: optional
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: libc6
Recommends: systemd
Description: userspace switch for pods
 One process per node connects pods on kernels without overlay support: it
 reads their TAP devices, switches and routes, and carries traffic to other
 nodes in VXLAN. With its CNI plugin and a systemd unit.
EOF
echo /etc/tapyard/tapyard.yaml >"$root/DEBIAN/conffiles"
# An upgrade restarts the agent, which pods don't notice. A first install doesn't start it: it needs a configuration.
cat >"$root/DEBIAN/postinst" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	if [ -n "$2" ]; then systemctl try-restart tapyard.service; fi
fi
EOF
cat >"$root/DEBIAN/prerm" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now tapyard.service
fi
EOF
cat >"$root/DEBIAN/postrm" <<'EOF'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
EOF
chmod 755 "$root"/DEBIAN/{postinst,prerm,postrm}
dpkg-deb --root-owner-group --build "$root" "bin/tapyard_${version}_$arch.deb"
