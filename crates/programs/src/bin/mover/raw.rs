// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of VFIO by plain system calls, with the numbers of Linux's header.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Names of the states, by number.
pub(crate) const NAMES: [&str; 8] =
    ["ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];
pub(crate) const ERROR: u32 = 0;
pub(crate) const STOP: u32 = 1;
pub(crate) const RUNNING: u32 = 2;
pub(crate) const STOP_COPY: u32 = 3;
pub(crate) const RESUMING: u32 = 4;
pub(crate) const PRE_COPY: u32 = 6;

pub(crate) const GET: u32 = 1 << 16;
pub(crate) const SET: u32 = 1 << 17;
pub(crate) const PROBE: u32 = 1 << 18;
/// Feature MIG_DEVICE_STATE.
pub(crate) const STATE: u32 = 2;

const DEVICE_RESET: u64 = 0x3b6f;
const DEVICE_FEATURE: u64 = 0x3b75;
const BIND_IOMMUFD: u64 = 0x3b76;
pub(crate) const PRECOPY_INFO: u64 = 0x3b79;

/// A call's errno.
pub(crate) type Result<T> = std::result::Result<T, i32>;

pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub(crate) fn ioctl(fd: i32, request: u64, arg: *mut libc::c_void) -> Result<i32> {
    // SAFETY: `arg` is null or points to as much as the request says.
    match unsafe { libc::ioctl(fd, request as libc::Ioctl, arg) } {
        -1 => Err(errno()),
        value => Ok(value),
    }
}

/// An open device, bound to an iommufd.
pub(crate) struct Device {
    pub(crate) device: OwnedFd,
    pub(crate) iommu: File,
    /// What the iommufd calls it.
    pub(crate) id: u32,
}

impl Device {
    pub(crate) fn open(address: &str) -> io::Result<Device> {
        let both = |path: &str| OpenOptions::new().read(true).write(true).open(path);
        let mut nodes = std::fs::read_dir(format!("/sys/bus/pci/devices/{address}/vfio-dev"))?;
        let name = nodes.next().ok_or(io::ErrorKind::NotFound)??.file_name();
        let device = both(&format!("/dev/vfio/devices/{}", name.display()))?;
        let iommu = both("/dev/iommu")?;
        // argsz, flags, iommufd, out_devid
        let mut bind = [16_u32, 0, iommu.as_raw_fd() as u32, 0];
        ioctl(device.as_raw_fd(), BIND_IOMMUFD, bind.as_mut_ptr().cast()).map_err(io::Error::from_raw_os_error)?;
        Ok(Device { device: device.into(), iommu, id: bind[3] })
    }

    pub(crate) fn reset(&self) -> Result<()> {
        ioctl(self.device.as_raw_fd(), DEVICE_RESET, std::ptr::null_mut()).map(drop)
    }

    /// DEVICE_FEATURE with this size, these flags and two words behind; the
    /// words as they are then.
    pub(crate) fn feature(&self, argsz: u32, flags: u32, words: [u32; 2]) -> (Result<()>, [u32; 2]) {
        let mut arg = [argsz, flags, words[0], words[1]];
        let result = ioctl(self.device.as_raw_fd(), DEVICE_FEATURE, arg.as_mut_ptr().cast());
        (result.map(drop), [arg[2], arg[3]])
    }

    /// The same with as many words as there are.
    pub(crate) fn feature_words(&self, arg: &mut [u32]) -> Result<()> {
        ioctl(self.device.as_raw_fd(), DEVICE_FEATURE, arg.as_mut_ptr().cast()).map(drop)
    }

    pub(crate) fn get(&self) -> u32 {
        let (result, [state, fd]) = self.feature(16, GET | STATE, [99, 99]);
        assert_eq!((result, fd as i32), (Ok(()), -1), "GET");
        state
    }

    /// SET; the stream, if one was opened.
    pub(crate) fn set(&self, state: u32) -> Result<Option<OwnedFd>> {
        let (result, [after, fd]) = self.feature(16, SET | STATE, [state, 99]);
        assert_eq!(after, state, "the field keeps what was asked for");
        match (result, fd as i32) {
            (Ok(()), -1) => Ok(None),
            // SAFETY: the call has just made the descriptor for us alone.
            (Ok(()), fd) if fd >= 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
            (Err(errno), -1) => Err(errno),
            other => panic!("SET to {}: {other:?}", name(state)),
        }
    }

    /// SET to a state with a stream.
    pub(crate) fn stream(&self, state: u32) -> OwnedFd {
        let opened = self.set(state).unwrap_or_else(|e| panic!("SET to {}: errno {e}", name(state)));
        opened.unwrap_or_else(|| panic!("no stream in {}", name(state)))
    }

    /// The device's whole state; it runs again then.
    pub(crate) fn save(&self) -> Vec<u8> {
        let stream = self.stream(STOP_COPY);
        let all = drain(stream.as_raw_fd());
        assert!(self.set(RUNNING).is_ok_and(|fd| fd.is_none()), "RUNNING after STOP_COPY");
        all
    }
}

pub(crate) fn name(state: u32) -> String {
    NAMES.get(state as usize).map_or_else(|| state.to_string(), |name| (*name).to_owned())
}

pub(crate) fn number(name: &str) -> u32 {
    NAMES.iter().position(|n| *n == name).unwrap_or_else(|| panic!("no state is called {name}")) as u32
}

pub(crate) fn read(fd: i32, to: &mut [u8]) -> Result<usize> {
    // SAFETY: `to` is as long as is said.
    let got = unsafe { libc::read(fd, to.as_mut_ptr().cast(), to.len()) };
    usize::try_from(got).map_err(|_| errno())
}

pub(crate) fn write(fd: i32, from: &[u8]) -> Result<usize> {
    // SAFETY: `from` is as long as is said.
    let done = unsafe { libc::write(fd, from.as_ptr().cast(), from.len()) };
    usize::try_from(done).map_err(|_| errno())
}

/// Reads to the end.
pub(crate) fn drain(fd: i32) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), vec![0; 10_000]);
    loop {
        match read(fd, &mut piece) {
            Ok(0) => return all,
            Ok(got) => all.extend_from_slice(&piece[..got]),
            Err(errno) => panic!("read of a stream: errno {errno}"),
        }
    }
}

/// Writes all.
pub(crate) fn fill(fd: i32, mut from: &[u8]) {
    while !from.is_empty() {
        match write(fd, &from[..from.len().min(7777)]) {
            Ok(done) => from = &from[done..],
            Err(errno) => panic!("write of a stream: errno {errno}"),
        }
    }
}
