#!/bin/busybox sh
# The first program of the machine, in the initramfs: it makes the root that guest.sh then runs in.
# The root is the host's, read-only by 9p, under a tmpfs that takes every change. See switch_root(8), overlayfs.

set -eu
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
# The kernel's own words do not belong between those of the tests.
echo 1 > /proc/sys/kernel/printk

echo 'lane: modules'
for module in /modules/*; do
	insmod "$module"
done

echo 'lane: root'
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 root /host
mount -t tmpfs -o mode=755,size=50% changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work root /root

# shellcheck disable=SC2013  # words of the command line of the kernel are words
for word in $(cat /proc/cmdline); do
	case $word in lane.guest=*) guest=${word#lane.guest=} ;; esac
done
umount /proc
ifconfig lo 127.0.0.1 up
exec switch_root /root /bin/sh "$guest"
