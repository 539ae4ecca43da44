#!/bin/sh
# The second program of the machine, process 1 of the real root: the mounts that a machine has, then the tests.
# Belongs here: what a test may expect of a host with cgroups v2 only. The directory `lane` is shared with the host:
# `settings` comes from there, `status` goes there. Whatever ends this script ends the machine.

set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

mount -t proc -o nosuid,nodev,noexec proc /proc
trap 'echo "lane: end"; sync; echo o > /proc/sysrq-trigger; while :; do :; done' EXIT

echo 'lane: mounts'
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
mount -t devtmpfs -o nosuid,mode=755 devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
ln -sfn /proc/self/fd /dev/fd
ln -sfn fd/0 /dev/stdin
ln -sfn fd/1 /dev/stdout
ln -sfn fd/2 /dev/stderr
mount -t tmpfs -o nosuid,nodev,mode=755 run /run
mkdir -p /run/lane /run/lock /disk
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 lane /run/lane

# The disk is also where temporary files are, as on a host whose root is on a disk; not at /tmp, where the checkout may
# be. It has the scheduler that knows weights.
mount -t ext4 /dev/vda /disk
echo bfq > /sys/block/vda/queue/scheduler
mkdir -m 1777 /disk/tmp
export TMPDIR=/disk/tmp

echo kernel-lane > /proc/sys/kernel/hostname

. /run/lane/settings
cd "$LANE_CHECKOUT"
echo "lane: Linux $(uname -r), up $(cut -d. -f1 /proc/uptime) s, controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"

eval "set -- $LANE_TESTS"
# Through a pipe, so that pytest does not take the console for a terminal and paint progress on it.
{
	status=0
	.venv/bin/python -m pytest -p no:cacheprovider -v --durations=10 -o timeout="$LANE_TEST_TIMEOUT_S" "$@" || status=$?
	echo "$status" > /run/lane/status
} 2>&1 | cat
