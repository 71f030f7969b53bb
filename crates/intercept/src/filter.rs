// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which system calls of the program come to the supervisor.
//!
//! A filter sees numbers only: no path, no memory, no kind of file. So it
//! goes by what is rare in ordinary programs (the type byte of a request, an
//! offset beyond 2^45, an open for writing) and the supervisor sends on what
//! was not meant for it. Calls that are not listed cost a few nanoseconds.

use std::ops::Range;

use libc::sock_filter;

use crate::bpf::{ALLOW, Assembler, Block, NOTIFY};

/// Type byte of VFIO and iommufd requests (API-001).
pub(crate) const TYPE_VFIO: u32 = 0x3b;
/// Type byte of vhost requests.
pub(crate) const TYPE_VHOST: u32 = 0xaf;
/// `KVM_SET_DEVICE_ATTR`: the kvm-vfio device takes no descriptors of ours.
pub(crate) const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;
/// Longest store to an attribute: a page, as in sysfs.
pub(crate) const ATTRIBUTE_MAX: u32 = 4096;

/// Lengths of a message for vhost-vdpa: programs write 72 bytes, 40 are enough
/// (VDPA-7.3). Never 8: those are eventfds.
const MESSAGE: Range<u32> = 40..129;

/// Lengths of a record for `/dev/aer_inject`, and of what it refuses (ERR-060);
/// not 8 either.
const RECORDS: [Range<u32>; 2] = [1..8, 9..65];

/// High half of the lowest region offset: of region 1 where Linux has it, which
/// some programs use without asking.
const REGION_HIGH: u32 = 1 << (uapi::region::SHIFT - 32);

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

/// x32 calls have this bit in their number. They and i386 calls are let
/// through: such programs run, but see placeholders only, because offsets and
/// pointers lie differently in their arguments.
#[cfg(target_arch = "x86_64")]
const FOREIGN: u32 = 0x4000_0000;
#[cfg(target_arch = "aarch64")]
const FOREIGN: u32 = 0;

/// What the filter depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    /// Calls with paths are answered too.
    pub(crate) paths: bool,
    /// Attributes take stores.
    pub(crate) sysfs_writable: bool,
    /// Writes of the length of messages are answered too.
    pub(crate) messages: bool,
    /// Writes of the length of short records, too.
    pub(crate) records: bool,
    /// Opens for reading are answered too.
    pub(crate) reads: bool,
    /// Descriptors that are read and written by their number.
    pub(crate) queues: Range<i32>,
}

/// Assembles the filter.
pub(crate) fn assemble(choice: &Choice) -> Vec<sock_filter> {
    let mut filter = Assembler::new(ARCH, FOREIGN);
    let notify = || Block::default().ret(NOTIFY);

    filter.call(
        libc::SYS_ioctl,
        Block::default()
            .load_low(1)
            .if_equal(KVM_SET_DEVICE_ATTR, NOTIFY)
            .and(0xff00)
            .if_equal(TYPE_VFIO << 8, NOTIFY)
            .if_equal(TYPE_VHOST << 8, NOTIFY)
            .ret(ALLOW),
    );
    let queue = || {
        let Range { start, end } = choice.queues;
        Block::default().load_low(0).if_within(start as u32..end as u32, NOTIFY)
    };
    // The filter looks for a number from its start, so what programs do most
    // comes first. QEMU writes to an eventfd for each request of a disk: behind
    // all the others that was a hundredth of its time.
    if choice.sysfs_writable {
        let small = queue().load_high(2).if_not_equal(0, ALLOW).load_low(2);
        filter.call(libc::SYS_write, small.if_at_least(ATTRIBUTE_MAX + 1, ALLOW).ret(NOTIFY));
    } else if choice.messages || choice.records {
        let mut small = queue().load_high(2).if_not_equal(0, ALLOW).load_low(2);
        if choice.messages {
            small = small.if_within(MESSAGE, NOTIFY);
        }
        for lengths in RECORDS.into_iter().filter(|_| choice.records) {
            small = small.if_within(lengths, NOTIFY);
        }
        filter.call(libc::SYS_write, small.ret(ALLOW));
    } else {
        filter.call(libc::SYS_write, queue().ret(ALLOW));
    }
    filter.call(libc::SYS_read, queue().ret(ALLOW));
    // A negative offset is the kernel's to refuse.
    let by_offset =
        |block: Block, arg| block.load_high(arg).if_at_least(0x8000_0000, ALLOW).if_at_least(REGION_HIGH, NOTIFY);
    for nr in [
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_preadv2,
        libc::SYS_pwritev2,
    ] {
        filter.call(nr, by_offset(queue(), 3).ret(ALLOW));
    }
    filter.call(libc::SYS_readv, queue().ret(ALLOW));
    filter.call(libc::SYS_writev, queue().ret(if choice.messages || choice.records { NOTIFY } else { ALLOW }));
    // Handles have nothing at low offsets either; programs map few files shared.
    let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32;
    let mmap = by_offset(Block::default(), 5).load_low(3).and(shared);
    filter.call(libc::SYS_mmap, mmap.if_equal(libc::MAP_SHARED as u32, NOTIFY).ret(ALLOW));
    // The memfd behind a device must keep its size and pages.
    filter.call(libc::SYS_fallocate, notify());
    filter.call(libc::SYS_ftruncate, notify());

    let open = |flags| {
        if choice.paths || choice.reads {
            notify()
        } else {
            // Nodes and attributes are opened for writing; programs open little else so.
            Block::default().load_low(flags).and(libc::O_ACCMODE as u32).if_equal(0, ALLOW).ret(NOTIFY)
        }
    };
    filter.call(libc::SYS_openat, open(2));
    filter.call(libc::SYS_openat2, notify());
    #[cfg(target_arch = "x86_64")]
    {
        filter.call(libc::SYS_open, open(1));
        filter.call(libc::SYS_creat, notify());
    }

    // What can make a descriptor number mean another file, or an address other memory.
    filter.call(
        libc::SYS_fcntl,
        Block::default()
            .load_low(1)
            .if_equal(libc::F_DUPFD as u32, NOTIFY)
            .if_equal(libc::F_DUPFD_CLOEXEC as u32, NOTIFY)
            .ret(ALLOW),
    );
    filter.call(libc::SYS_dup, notify());
    filter.call(libc::SYS_dup3, notify());
    #[cfg(target_arch = "x86_64")]
    filter.call(libc::SYS_dup2, notify());
    filter.call(libc::SYS_execve, notify());
    filter.call(libc::SYS_execveat, notify());

    // What changes a process's rights (`rights`).
    let memlock = libc::RLIMIT_MEMLOCK;
    filter.call(libc::SYS_setrlimit, Block::default().load_low(0).if_equal(memlock, NOTIFY).ret(ALLOW));
    filter.call(
        libc::SYS_prlimit64,
        Block::default()
            .load_low(1)
            .if_not_equal(memlock, ALLOW)
            .load_low(2)
            .if_not_equal(0, NOTIFY)
            .load_high(2)
            .if_not_equal(0, NOTIFY)
            .ret(ALLOW),
    );
    let new_user = libc::CLONE_NEWUSER as u32;
    filter.call(libc::SYS_unshare, Block::default().load_low(0).and(new_user).if_equal(new_user, NOTIFY).ret(ALLOW));
    filter.call(libc::SYS_setns, notify());
    // The ids that files are opened with (`setfsuid`) have no part in these.
    for nr in [libc::SYS_capset, libc::SYS_setuid, libc::SYS_setreuid, libc::SYS_setresuid] {
        filter.call(nr, notify());
    }

    if choice.paths {
        path_calls(&mut filter);
    }
    filter.finish()
}

/// Calls that name a file, and `eventfd2`, whose files must be ours.
fn path_calls(filter: &mut Assembler) {
    let notify = || Block::default().ret(NOTIFY);
    // With AT_EMPTY_PATH it is `fstat`, which needs no redirection.
    let unless_empty =
        |flags| Block::default().load_low(flags).and(libc::AT_EMPTY_PATH as u32).if_not_equal(0, ALLOW).ret(NOTIFY);
    filter.call(libc::SYS_newfstatat, unless_empty(3));
    filter.call(libc::SYS_statx, unless_empty(2));
    for nr in [
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_chdir,
        libc::SYS_fchdir,
        libc::SYS_getcwd,
        libc::SYS_eventfd2,
        libc::SYS_inotify_add_watch,
        libc::SYS_statfs,
        libc::SYS_getxattr,
        libc::SYS_lgetxattr,
        libc::SYS_listxattr,
        libc::SYS_llistxattr,
    ] {
        filter.call(nr, notify());
    }
    #[cfg(target_arch = "x86_64")]
    for nr in [libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_eventfd] {
        filter.call(nr, notify());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::interpreter::run;

    fn verdict(choice: Choice, nr: libc::c_long, args: [u64; 6]) -> bool {
        match run(&assemble(&choice), ARCH, nr as u32, args) {
            NOTIFY => true,
            ALLOW => false,
            other => panic!("{other:#x}"),
        }
    }

    // API-001
    #[test]
    fn ioctls_go_by_type_byte() {
        let ioctl = |request| verdict(Choice::default(), libc::SYS_ioctl, [3, request, 0, 0, 0, 0]);
        assert!(ioctl(0x3b64));
        assert!(ioctl(0x3bff));
        assert!(ioctl(0x8008_af00));
        assert!(ioctl(u64::from(KVM_SET_DEVICE_ATTR)));
        assert!(ioctl(0xdead_beef_0000_3b64), "the kernel looks at 32 bits");
        assert!(!ioctl(0x5401));
        assert!(!ioctl(0xae01));
    }

    #[test]
    fn accesses_go_by_offset() {
        for nr in [libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev2] {
            let at = |offset| verdict(Choice::default(), nr, [3, 0, 4, offset, 0, 0]);
            assert!(!at(0));
            assert!(!at((1 << 40) - 1));
            assert!(at(7 << 40));
            assert!(at(uapi::region::offset(0, 0)));
            assert!(at(i64::MAX as u64));
            assert!(!at(u64::MAX));
            assert!(!at(1 << 63));
        }
        let mmap = |offset| verdict(Choice::default(), libc::SYS_mmap, [0, 4096, 1, 2, 3, offset]);
        assert!(!mmap(0));
        assert!(mmap(uapi::region::offset(3, 5)));
    }

    // IOMMUFD-2.12
    #[test]
    fn shared_mappings_of_files_are_looked_at() {
        let mmap = |flags: i32| verdict(Choice::default(), libc::SYS_mmap, [0, 4096, 1, flags as u64, 3, 4096]);
        assert!(mmap(libc::MAP_SHARED) && mmap(libc::MAP_SHARED_VALIDATE | libc::MAP_FIXED));
        assert!(!mmap(libc::MAP_PRIVATE) && !mmap(libc::MAP_SHARED | libc::MAP_ANONYMOUS));
    }

    #[test]
    fn queues_go_by_number() {
        let queues = || Choice { queues: 768..1024, ..Choice::default() };
        for nr in [libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64] {
            let caught = |fd: u64| verdict(queues(), nr, [fd, 0, 8, 0, 0, 0]);
            assert!(caught(768) && caught(1023) && caught(0xdead_0000_0000 + 768));
            assert!(!caught(767) && !caught(1024) && !caught(u64::MAX));
            assert!(!verdict(Choice::default(), nr, [0, 0, 8, 0, 0, 0]));
        }
    }

    #[test]
    fn opens_for_reading_are_free() {
        let open = |choice, flags: i32| verdict(choice, libc::SYS_openat, [0, 0, flags as u64, 0, 0, 0]);
        assert!(!open(Choice::default(), libc::O_RDONLY | libc::O_CLOEXEC));
        assert!(open(Choice::default(), libc::O_RDWR | libc::O_CLOEXEC));
        assert!(open(Choice::default(), libc::O_WRONLY | libc::O_CREAT));
        assert!(open(Choice { paths: true, ..Choice::default() }, libc::O_RDONLY));
        assert!(open(Choice { reads: true, ..Choice::default() }, libc::O_RDONLY));
    }

    #[test]
    fn what_changes_rights() {
        let limit = |nr, args: [u64; 3]| verdict(Choice::default(), nr, [args[0], args[1], args[2], 0, 0, 0]);
        let (memlock, files) = (u64::from(libc::RLIMIT_MEMLOCK), u64::from(libc::RLIMIT_NOFILE));
        assert!(limit(libc::SYS_setrlimit, [memlock, 0x7fff_0000_0000, 0]));
        assert!(!limit(libc::SYS_setrlimit, [files, 0x7fff_0000_0000, 0]));
        assert!(limit(libc::SYS_prlimit64, [0, memlock, 0x7fff_0000_0000]));
        assert!(limit(libc::SYS_prlimit64, [1, memlock, 8]));
        assert!(!limit(libc::SYS_prlimit64, [0, memlock, 0]), "only asks");
        assert!(!limit(libc::SYS_prlimit64, [0, files, 8]));
        assert!(limit(libc::SYS_unshare, [(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as u64, 0, 0]));
        assert!(!limit(libc::SYS_unshare, [libc::CLONE_NEWNS as u64, 0, 0]));
        for nr in [libc::SYS_capset, libc::SYS_setuid, libc::SYS_setreuid, libc::SYS_setresuid] {
            assert!(limit(nr, [0; 3]), "who becomes another user has other capabilities");
        }
    }

    #[test]
    fn small_writes_only_when_asked_for() {
        let write = |sysfs_writable, count| {
            verdict(Choice { sysfs_writable, ..Choice::default() }, libc::SYS_write, [1, 0, count, 0, 0, 0])
        };
        assert!(!write(false, 4));
        assert!(write(true, 4));
        assert!(write(true, 4096));
        assert!(!write(true, 4097));
        assert!(!write(true, 1 << 32));
    }

    /// VDPA-7.3
    #[test]
    fn messages_go_by_length() {
        let choice = || Choice { messages: true, ..Choice::default() };
        let write = |count| verdict(choice(), libc::SYS_write, [5, 0, count, 0, 0, 0]);
        assert!(write(40) && write(72) && write(128));
        assert!(!write(8) && !write(39) && !write(129) && !write(1 << 32 | 72));
        assert!(verdict(choice(), libc::SYS_writev, [5, 0, 2, 0, 0, 0]));
        assert!(!verdict(Choice::default(), libc::SYS_writev, [5, 0, 2, 0, 0, 0]));
    }

    /// ERR-060
    #[test]
    fn records_go_by_length() {
        let write = |messages, count| {
            let choice = Choice { messages, records: true, ..Choice::default() };
            verdict(choice, libc::SYS_write, [5, 0, count, 0, 0, 0])
        };
        assert!(write(false, 27) && write(false, 28) && write(false, 32) && write(false, 33));
        assert!(!write(false, 0) && !write(false, 8) && !write(false, 65) && !write(false, 1 << 32 | 32));
        assert!(write(true, 72) && write(true, 32) && !write(true, 8));
    }

    #[test]
    fn fstat_is_free_in_paths_mode() {
        let paths = Choice { paths: true, ..Choice::default() };
        assert!(!verdict(paths.clone(), libc::SYS_newfstatat, [3, 0, 0, libc::AT_EMPTY_PATH as u64, 0, 0]));
        assert!(verdict(paths, libc::SYS_newfstatat, [3, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn other_architectures_and_calls_pass() {
        let filter = assemble(&Choice {
            paths: true,
            sysfs_writable: true,
            messages: true,
            records: true,
            reads: true,
            queues: 3..9,
        });
        assert_eq!(run(&filter, 0x4000_0003, 54, [3, 0x3b64, 0, 0, 0, 0]), ALLOW);
        assert_eq!(run(&filter, ARCH, libc::SYS_getppid as u32, [0; 6]), ALLOW);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(&filter, ARCH, FOREIGN | 514, [3, 0x3b64, 0, 0, 0, 0]), ALLOW);
        assert!(filter.len() < 4096);
    }
}
