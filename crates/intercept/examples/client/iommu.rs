// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What programs do with `/dev/iommu` besides requests: descriptors that
//! requests give, queues, mappings, memory that outlives its program.

use std::ffi::c_int;
use std::process::Command;

use crate::{
    BAR, RESET, child, close, config, container, device_of, done, errno, group, ioctl_value, is_cloexec, open,
    receive_fd, send_fd, wait,
};

/// Requests of the tests' kernel.
const NEW_HANDLE: u64 = 0x3ba1;
const NEW_QUEUE: u64 = 0x3ba2;
const FILL_QUEUES: u64 = 0x3ba3;
const PIN_FILE: u64 = 0x3ba4;
const KEEP_MM: u64 = 0x3ba5;
const READ_MM: u64 = 0x3ba6;
const IS_MAPPED: u64 = 0x3ba7;
const OPEN_FILES: u64 = 0x3ba8;

fn iommu() -> c_int {
    open("/dev/iommu", libc::O_RDWR | libc::O_CLOEXEC).unwrap()
}

fn map(fd: c_int, kind: c_int, offset: u64) -> Result<*mut u8, c_int> {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, rw, kind, fd, offset as i64) };
    if at == libc::MAP_FAILED { Err(errno()) } else { Ok(at.cast()) }
}

/// Descriptors that a request gives in its structure; mappings of handles.
pub(crate) fn handles() {
    let iommu = iommu();
    let first = ioctl_value(iommu, NEW_HANDLE, 0).unwrap();
    assert_eq!(first, iommu + 1, "the lowest number");
    assert!(is_cloexec(first));
    // One that the kernel takes back: nothing of it is left but its number.
    let taken_back = ioctl_value(iommu, NEW_HANDLE, 1).unwrap();
    assert_eq!(ioctl_value(taken_back, NEW_HANDLE, 0), Err(libc::ENOTTY));
    close(taken_back);
    // A number that meant another file.
    let container = container();
    assert_eq!(ioctl_value(container, 0x3b65, 1), Ok(1));
    let keep = unsafe { libc::dup(container) };
    close(container);
    assert_eq!(ioctl_value(iommu, NEW_HANDLE, 0), Ok(container));
    assert_eq!(ioctl_value(container, 0x3b65, 1), Err(libc::ENOTTY));

    for offset in [0, 4096, BAR] {
        assert_eq!(map(iommu, libc::MAP_SHARED, offset).map(drop), Err(libc::ENXIO));
        assert_eq!(map(keep, libc::MAP_SHARED, offset).map(drop), Err(libc::ENODEV)); // API-018
        assert_eq!(map(first, libc::MAP_SHARED, offset).map(drop), Err(libc::ENODEV));
    }
    let device = device_of(group()).unwrap();
    assert_eq!(ioctl_value(device, IS_MAPPED, 1), Ok(0));
    let page = map(device, libc::MAP_SHARED, BAR + 4096).unwrap();
    assert_eq!(ioctl_value(device, IS_MAPPED, 1), Ok(1));
    assert_eq!(ioctl_value(device, IS_MAPPED, 0), Ok(0));
    let pid = child(|| assert_eq!(ioctl_value(device, IS_MAPPED, 1), Ok(1), "inherited"));
    assert_eq!(wait(pid), 0);
    unsafe { libc::munmap(page.cast(), 4096) };
    assert_eq!(ioctl_value(device, IS_MAPPED, 1), Ok(0));
    // Files of the machine are mapped as ever.
    let file = memfd(4096);
    assert!(map(file, libc::MAP_SHARED, 0).is_ok());
    assert_eq!(map(999, libc::MAP_SHARED, 0), Err(libc::EBADF));
}

fn memfd(len: i64) -> c_int {
    let fd = unsafe { libc::memfd_create(c"client".as_ptr(), libc::MFD_CLOEXEC) };
    assert_eq!(unsafe { libc::ftruncate(fd, len) }, 0);
    fd
}

fn shows(fd: c_int) -> i16 {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN | libc::POLLOUT, revents: 0 };
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents
}

fn read(fd: c_int, len: usize) -> Result<Vec<u8>, c_int> {
    let mut bytes = vec![0u8; len];
    let got = done(unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), len) } as c_int)?;
    bytes.truncate(got as usize);
    Ok(bytes)
}

fn write(fd: c_int, bytes: &[u8]) -> Result<c_int, c_int> {
    done(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as c_int)
}

/// A file that is read, written and polled: FAULT-2, IOMMUFD-11.10.
pub(crate) fn queues() {
    let iommu = iommu();
    let fault = ioctl_value(iommu, NEW_QUEUE, 0).unwrap();
    let event = ioctl_value(iommu, NEW_QUEUE, 1).unwrap();
    assert!(is_cloexec(fault) && is_cloexec(event));
    assert_eq!((shows(fault), shows(event)), (libc::POLLOUT, 0));
    assert_eq!((read(fault, 8), read(event, 8)), (Ok(vec![]), Ok(vec![])), "never waits");
    ioctl_value(iommu, FILL_QUEUES, 5).unwrap();
    assert_eq!((shows(fault), shows(event)), (libc::POLLIN | libc::POLLOUT, libc::POLLIN));
    assert_eq!(read(fault, 3), Ok(b"qqq".to_vec()));
    assert_eq!(shows(fault), libc::POLLIN | libc::POLLOUT);
    assert_eq!(read(fault, 3), Ok(b"qq".to_vec()));
    assert_eq!((shows(fault), shows(event)), (libc::POLLOUT, libc::POLLIN));
    assert_eq!((write(fault, b"w23"), write(event, b"x")), (Ok(3), Err(libc::EFBIG)));
    unsafe {
        let mut byte = 0u8;
        let at = (&raw mut byte).cast();
        assert_eq!((libc::pread(fault, at, 1, 4), errno()), (-1, libc::ESPIPE));
        assert_eq!((libc::pread(fault, at, 1, -1), errno()), (-1, libc::EINVAL));
        assert_eq!(libc::pread(event, at, 1, 0), 1);
        assert_eq!((libc::lseek(fault, 0, libc::SEEK_SET), errno()), (-1, libc::ESPIPE));
        assert_eq!((libc::read(event, 8 as *mut _, 1), errno()), (-1, libc::EFAULT));
        let mut parts = [[0u8; 2]; 4];
        let list = parts.each_mut().map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: 2 });
        assert_eq!(libc::readv(event, list.as_ptr(), 4), 4);
        assert_eq!(
            libc::writev(fault, [libc::iovec { iov_base: c"ww".as_ptr().cast_mut().cast(), iov_len: 2 }].as_ptr(), 1),
            2
        );
        assert_eq!(libc::preadv2(fault, list.as_ptr(), 4, -1, 0), 0);

        // An epoll instance, another process, a thread: as any file.
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut wanted = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
        assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, event, &raw mut wanted), 0);
        let mut got = libc::epoll_event { events: 0, u64: 0 };
        assert_eq!(libc::epoll_wait(epoll, &raw mut got, 1, 0), 0);
        ioctl_value(iommu, FILL_QUEUES, 2).unwrap();
        assert_eq!(libc::epoll_wait(epoll, &raw mut got, 1, 1000), 1);
        let pid = child(|| assert_eq!(read(event, 1), Ok(vec![b'q'])));
        assert_eq!(wait(pid), 0);
        assert_eq!(read(event, 9), Ok(vec![b'q']));

        // Duplicates can be read, too.
        let twins = [
            libc::dup(fault),
            libc::fcntl(fault, libc::F_DUPFD, 3),
            libc::fcntl(fault, libc::F_DUPFD_CLOEXEC, fault + 9),
        ];
        assert_eq!(twins.map(is_cloexec), [false, false, true]);
        assert!(twins[2] >= fault + 9);
        for twin in twins {
            ioctl_value(iommu, FILL_QUEUES, 1).unwrap();
            assert_eq!(shows(twin) & libc::POLLIN, libc::POLLIN);
            assert_eq!(read(twin, 4), Ok(vec![b'q']));
            close(twin);
        }
        assert_eq!((libc::dup2(fault, 50), errno()), (-1, libc::EBADF), "a number that cannot be read");
        assert_eq!(libc::dup2(fault, fault), fault);
        assert_eq!(libc::dup2(fault, event), event);
        ioctl_value(iommu, FILL_QUEUES, 3).unwrap();
        assert_eq!(read(event, 9), Ok(b"qqq".to_vec()));

        // Sent to another process it is at an ordinary number; a duplicate is read.
        let mut pair = [0; 2];
        libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr());
        ioctl_value(iommu, FILL_QUEUES, 4).unwrap();
        let pid = child(|| {
            let sent = receive_fd(pair[1]);
            assert_eq!(shows(sent) & libc::POLLIN, libc::POLLIN);
            assert_eq!(read(libc::dup(sent), 9), Ok(b"qqqq".to_vec()));
        });
        send_fd(pair[0], fault);
        assert_eq!(wait(pid), 0);
        assert_eq!(shows(fault), libc::POLLOUT);

        // Other files at such numbers are none of ours.
        let mut ends = [0; 2];
        libc::pipe(ends.as_mut_ptr());
        let pipe = [libc::dup2(ends[0], fault + 20), libc::dup2(ends[1], fault + 21)];
        assert_eq!((write(pipe[1], b"native"), read(pipe[0], 99)), (Ok(6), Ok(b"native".to_vec())));
        let file = libc::dup2(memfd(100), fault + 22);
        assert_eq!(libc::pwrite(file, c"ab".as_ptr().cast(), 2, 50), 2);
        assert_eq!(libc::pread(file, at, 1, 51), 1);
        assert_eq!(byte, b'b');
        assert_eq!(read(fault + 23, 1), Err(libc::EBADF));
        // No number is given twice.
        let next = ioctl_value(iommu, NEW_QUEUE, 0).unwrap();
        assert!(![fault, event, fault + 20, fault + 21, fault + 22].contains(&next));
    }
    // A queue that is all that is left keeps working after exec.
    close(iommu);
    unsafe { libc::fcntl(fault, libc::F_SETFD, 0) };
    let me = std::env::current_exe().unwrap();
    assert!(Command::new(me).args(["exec-queue", &fault.to_string()]).status().unwrap().success());
}

/// After `exec`: the queue that was inherited.
pub(crate) fn exec_queue(fault: c_int) {
    assert_eq!((read(fault, 8), shows(fault)), (Ok(vec![]), libc::POLLOUT));
    assert_eq!(write(fault, b"w"), Ok(1));
}

/// Memory and files that the kernel holds on to.
pub(crate) fn outlives() {
    let iommu = iommu();
    let pin = |fd: c_int, page: u64| ioctl_value(iommu, PIN_FILE, u64::from(fd as u32) | page << 32);
    let file = memfd(8192);
    unsafe { libc::pwrite(file, c"A".as_ptr().cast(), 1, 4096) };
    assert_eq!((pin(file, 0), pin(file, 1), pin(file, 2)), (Ok(0), Ok(65), Err(libc::EINVAL)));
    // IOMMUFD-5.10
    assert_eq!((pin(999, 0), pin(-1, 0)), (Err(libc::EBADF), Err(libc::EBADF)));
    let mut ends = [0; 2];
    unsafe { libc::pipe(ends.as_mut_ptr()) };
    for fd in [iommu, ends[0], device_of(group()).unwrap()] {
        assert_eq!(pin(fd, 0), Err(libc::EINVAL));
    }

    let page = unsafe {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), 4096, rw, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        at.cast::<u8>()
    };
    unsafe { page.write_volatile(7) };
    ioctl_value(iommu, KEEP_MM, 0).unwrap();
    assert_eq!(ioctl_value(iommu, READ_MM, page as u64), Ok(7));
    // IOMMUFD-5.8: another process may use it; what it reaches is the first one's.
    let pid = child(|| {
        unsafe { page.write_volatile(8) };
        assert_eq!(ioctl_value(iommu, READ_MM, page as u64), Ok(7));
        ioctl_value(iommu, KEEP_MM, 0).unwrap();
        assert_eq!(ioctl_value(iommu, READ_MM, page as u64), Ok(8));
    });
    assert_eq!(wait(pid), 0);
    assert_eq!(ioctl_value(iommu, READ_MM, page as u64), Err(libc::EFAULT), "gone with its program");
    assert_eq!(ioctl_value(iommu, READ_MM, 0), Err(libc::EFAULT));
}

/// Descriptors that another process has opened: libvirt's way with a cdev and
/// `/dev/iommu`. What is opened once is one file, wherever it goes, and each
/// open one of its own.
pub(crate) fn passing() {
    let cdev = || open("/dev/vfio/devices/vfio0", libc::O_RDWR | libc::O_CLOEXEC).unwrap();
    let is_device = |fd: c_int| ioctl_value(fd, RESET, 0) == Ok(0);
    let mut pair = [0; 2];
    unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) };
    let me = std::env::current_exe().unwrap();

    // Opened here, used in a process that it is sent to; closed here before.
    let (device, context) = (cdev(), iommu());
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let pid = child(|| {
        let (device, context) = (receive_fd(pair[1]), receive_fd(pair[1]));
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        assert_eq!(unsafe { libc::fstat(device, &raw mut stat) }, 0);
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR, "nobody has called yet");
        assert!(is_device(device));
        assert_eq!(ioctl_value(context, 0x3b81, 0), Ok(5));
        assert_eq!(config(device, 3), Ok(3));
        assert!(map(device, libc::MAP_SHARED, BAR).is_ok());
        assert_eq!(map(context, libc::MAP_SHARED, 0).map(drop), Err(libc::ENXIO));
    });
    for fd in [device, context] {
        send_fd(pair[0], fd);
        close(fd);
    }
    assert_eq!(wait(pid), 0);

    // Inherited across exec, by a number that the program is told.
    let (device, context) = (cdev(), iommu());
    for fd in [device, context] {
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    let other = cdev();
    let args = ["exec-passed".to_owned(), device.to_string(), context.to_string()];
    assert!(Command::new(me).args(args).status().unwrap().success());
    // It is the same file here, though this process has not called until now.
    let twin = unsafe { libc::dup(device) };
    let count = |fd: c_int| ioctl_value(fd, OPEN_FILES, 0).unwrap();
    let before = count(context);
    assert!(is_device(device) && is_device(twin));
    assert_eq!(count(context), before, "no new file");
    assert!(is_device(other));
    assert_eq!(count(context), before + 1, "another open");
    close(device);
    assert!(is_device(twin));
    assert_eq!(count(context), before + 1);
    close(twin);
    assert_eq!(count(context), before);
    assert_eq!(unsafe { libc::fstat(other, &raw mut stat) }, 0);

    // The file lives as long as a descriptor that was never used.
    let device = cdev();
    let unused = unsafe { libc::dup(device) };
    assert!(is_device(device));
    close(device);
    assert_eq!(count(context), before + 1);
    assert!(is_device(unused));
    assert_eq!(count(context), before + 1);
    close(unused);
    assert_eq!(count(context), before);
}

/// After `exec`: a cdev and `/dev/iommu` at the numbers given.
pub(crate) fn exec_passed(args: &[String]) {
    let (device, context): (c_int, c_int) = (args[0].parse().unwrap(), args[1].parse().unwrap());
    assert_eq!(ioctl_value(device, RESET, 0), Ok(0));
    assert_eq!(config(device, 7), Ok(7));
    assert_eq!(ioctl_value(context, 0x3b81, 0), Ok(5));
}
