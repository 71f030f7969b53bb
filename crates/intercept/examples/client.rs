// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs for the tests, one a subcommand: each uses VFIO as a program does
//! and ends with a panic if something is not as Linux has it.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    clients::run(&args);
}

mod clients {
    use std::ffi::{CString, c_int, c_void};

    pub const GET_API_VERSION: u64 = 0x3b64;
    pub const CHECK_EXTENSION: u64 = 0x3b65;
    pub const GROUP_GET_STATUS: u64 = 0x3b67;
    pub const SET_CONTAINER: u64 = 0x3b68;
    pub const GET_DEVICE_FD: u64 = 0x3b6a;
    pub const DEVICE_GET_INFO: u64 = 0x3b6b;

    pub fn open(path: &str, flags: c_int) -> Result<c_int, c_int> {
        let path = CString::new(path).unwrap();
        done(unsafe { libc::open(path.as_ptr(), flags) })
    }

    fn done(value: c_int) -> Result<c_int, c_int> {
        if value < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(value) }
    }

    pub fn ioctl<T>(fd: c_int, request: u64, arg: *mut T) -> Result<c_int, c_int> {
        done(unsafe { libc::ioctl(fd, request, arg) })
    }

    pub fn ioctl_value(fd: c_int, request: u64, arg: u64) -> Result<c_int, c_int> {
        done(unsafe { libc::ioctl(fd, request, arg) })
    }

    pub fn device() -> (c_int, c_int) {
        let group = open("/dev/vfio/7", libc::O_RDWR | libc::O_CLOEXEC).unwrap();
        let mut name = *b"0000:01:00.0\0";
        let device = ioctl(group, GET_DEVICE_FD, name.as_mut_ptr()).unwrap();
        (group, device)
    }

    pub fn config(device: c_int, at: u64) -> u8 {
        let mut byte = [0u8];
        let offset = (39u64 << 40) + at;
        let n = unsafe { libc::pread(device, byte.as_mut_ptr().cast(), 1, offset as i64) };
        assert_eq!(n, 1, "{}", std::io::Error::last_os_error());
        byte[0]
    }

    pub fn run(args: &[String]) {
        match args[0].as_str() {
            "basic" => basic(),
            other => panic!("no client {other}"),
        }
    }

    fn basic() {
        let container = open("/dev/vfio/vfio", libc::O_RDWR).unwrap();
        assert_eq!(ioctl_value(container, GET_API_VERSION, 0), Ok(0));
        assert_eq!(ioctl_value(container, CHECK_EXTENSION, 1), Ok(1));
        assert_eq!(ioctl_value(container, CHECK_EXTENSION, 2), Ok(0));
        assert_eq!(ioctl_value(container, 0x3bff, 0), Err(libc::ENOTTY));
        let (mut group, device) = device();
        assert_eq!(open("/dev/vfio/7", libc::O_RDWR), Err(libc::EBUSY));
        let mut status = [8u32, 0];
        assert_eq!(ioctl(group, GROUP_GET_STATUS, status.as_mut_ptr()), Ok(0));
        assert_eq!(status, [8, 1]);
        let mut fd = container;
        assert_eq!(ioctl(group, SET_CONTAINER, &raw mut fd), Ok(0));
        assert_eq!(ioctl(group, SET_CONTAINER, &raw mut group), Err(libc::EBADFD));
        let mut info = [16u32, 0, 0, 0];
        assert_eq!(ioctl(device, DEVICE_GET_INFO, info.as_mut_ptr()), Ok(0));
        assert_eq!(info[2..], [9, 5]);
        for at in [0, 3, 255] {
            assert_eq!(config(device, at), at as u8);
        }
        unsafe {
            let bar = libc::mmap(
                std::ptr::null_mut(),
                8192,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                device,
                32 << 40,
            );
            assert_ne!(bar, libc::MAP_FAILED);
            bar.cast::<u32>().write_volatile(7);
            let bad = libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_PRIVATE, device, 32 << 40);
            assert_eq!(bad, libc::MAP_FAILED as *mut c_void);
            assert_eq!(libc::close(group), 0);
        }
        assert_eq!(open("/dev/vfio/7", libc::O_RDWR).map(drop), Ok(()), "closed before");
    }
}
