#!/usr/bin/env bash
# Runs a command as on a small machine, as far as one can be had here: on one core, of which it gets a share, and with a disk
# that takes its time for each write that is waited for. As root, with cgroups and strace. For the figures of a Raspberry Pi:
#
#     DOORSTEP=target/release/doorstep tests/bench/run.sh --doorstep tests/bench/small_machine.sh --only doorstep
#
# CORE_PERCENT (30): how much of a core of this machine. SYNC_MS (5): by how much longer each fdatasync and fsync takes; a good
# SD card takes 2 to 10 ms. Memory cards are slow at reading, too: that is not imitated.
set -euo pipefail
binary=${DOORSTEP:?the binary} share=${CORE_PERCENT:-30} sync_ms=${SYNC_MS:-5}
group=doorstep-small-$$
# Those of before, which went with nobody.
rmdir /sys/fs/cgroup/{,cpu/}doorstep-small-* 2> /dev/null || true
quota=$((share * 1000))
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir "/sys/fs/cgroup/$group"
    echo "$quota 100000" > "/sys/fs/cgroup/$group/cpu.max"
    echo $$ > "/sys/fs/cgroup/$group/cgroup.procs"
else
    mkdir "/sys/fs/cgroup/cpu/$group"
    echo 100000 > "/sys/fs/cgroup/cpu/$group/cpu.cfs_period_us"
    echo "$quota" > "/sys/fs/cgroup/cpu/$group/cpu.cfs_quota_us"
    echo $$ > "/sys/fs/cgroup/cpu/$group/cgroup.procs"
fi
# It keeps the process id, for who measures it, and only these two calls are stopped at.
exec nice -n "${NICE:-0}" taskset -c 0 strace -D -f --seccomp-bpf -qq -o /dev/null -e trace=fdatasync,fsync \
    -e inject=fdatasync,fsync:delay_exit=$((sync_ms * 1000)) "$binary" "$@"
