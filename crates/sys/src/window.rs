// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device files: a memfd for each open device, its BARs mapped here and by the
//! program.
//!
//! The memfd is sparse: a BAR of 256 GiB costs address space and nothing else.
//! While accesses to memory are off the file ends below its BARs, so that the
//! program's next access to a mapped BAR raises SIGBUS; the pages that hold
//! data are kept aside and put back, lowest first, when the file grows again,
//! so that no access sees a page before its contents are there.
//!
//! The program cannot add seals to the file (which would keep us from changing
//! its size). It can truncate it; then it harms itself only: our mapping
//! survives (see `mapping`) and is put right when memory is next turned on.
#![deny(unsafe_code)]

use std::any::Any;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use caller::Pinned;
use device::{DeviceFile, DeviceFiles, NoDeviceFile, RegionLayout, Window};
use iommu::Memory;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fstat, ftruncate, memfd_create, seek};
use rustix::io::Errno as Raw;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use uapi::Errno;
use vm_memory::VolatileSlice;

use crate::file;
use crate::mapping::Mapping;
use crate::process::round_to_pages;

/// BAR `n` lies `n << BAR_SHIFT` behind the first one.
const BAR_SHIFT: u32 = 40;
/// Contents are put aside in pieces of this size, so that they never exist twice.
const PIECE: u64 = 2 << 20;
/// What a pipe may have without rights.
const PIPE: usize = 1 << 20;

/// Makes a memfd for each device that is opened.
#[derive(Debug, Default)]
pub struct MemfdFiles;

impl MemfdFiles {
    /// The memfd that a core device file is; `None` if it is of another kind.
    #[must_use]
    pub fn of(file: &Arc<dyn DeviceFile>) -> Option<Arc<Memfd>> {
        let any: Arc<dyn Any + Send + Sync> = file.clone();
        any.downcast().ok()
    }
}

impl DeviceFiles for MemfdFiles {
    fn create(&self, layout: &RegionLayout) -> Result<Arc<dyn DeviceFile>, NoDeviceFile> {
        make(layout, None)
    }
}

/// The same, of which accesses are held where a front door can.
#[derive(Debug)]
pub struct HoldingFiles(pub Arc<dyn Holder>);

impl DeviceFiles for HoldingFiles {
    fn create(&self, layout: &RegionLayout) -> Result<Arc<dyn DeviceFile>, NoDeviceFile> {
        make(layout, Some(Arc::clone(&self.0)))
    }
}

/// Keeps threads of programs at accesses to pages that are not there.
pub trait Holder: Send + Sync + Debug {
    /// From the return on, threads that access pages behind the end of the
    /// file of this device and inode number wait until
    /// [`release`](Self::release). `false`: they cannot be made to, and get
    /// SIGBUS.
    fn hold(&self, file: (u64, u64)) -> bool;

    /// They make their accesses again.
    fn release(&self, file: (u64, u64));
}

fn make(layout: &RegionLayout, holder: Option<Arc<dyn Holder>>) -> Result<Arc<dyn DeviceFile>, NoDeviceFile> {
    let memfd = Memfd::new(layout, holder).map_err(|error| {
        tracing::warn!(%error, "no file for a device");
        NoDeviceFile
    })?;
    Ok(memfd)
}

/// The memfd of an open device.
#[derive(Debug)]
pub struct Memfd {
    fd: Arc<OwnedFd>,
    base: u64,
    size: u64,
    id: (u64, u64),
    windows: [Option<Arc<BarWindow>>; 6],
    /// What devices reach there.
    peers: [OnceLock<Arc<dyn Memory>>; 6],
    holder: Option<Arc<dyn Holder>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    accessible: bool,
    /// Contents put aside: position and bytes, highest first.
    saved: Vec<(u64, Box<[u8]>)>,
}

#[derive(Debug)]
struct BarWindow {
    mapping: Mapping,
    len: usize,
}

impl Window for BarWindow {
    fn slice(&self) -> VolatileSlice<'_> {
        // `len` is at most the mapping's length, so there always is one.
        self.mapping.slice(0, self.len).unwrap_or_else(|| VolatileSlice::from(&mut [][..]))
    }
}

impl Memfd {
    fn new(layout: &RegionLayout, holder: Option<Arc<dyn Holder>>) -> Result<Arc<Memfd>, Errno> {
        let raw = |e: Raw| Errno::from_raw(e.raw_os_error());
        let fd = create().map_err(raw)?;
        let mut size = layout.base;
        for (bar, &len) in layout.mmap.iter().enumerate().filter(|(_, len)| **len != 0) {
            let start = bar_start(layout.base, bar).ok_or(Errno::EFBIG)?;
            let end = round_to_pages(len).and_then(|len| start.checked_add(len)).ok_or(Errno::EFBIG)?;
            size = size.max(end);
        }
        ftruncate(&fd, size).map_err(raw)?;
        let fd = Arc::new(fd);
        let mut windows: [Option<Arc<BarWindow>>; 6] = Default::default();
        for (bar, (window, &len)) in windows.iter_mut().zip(&layout.mmap).enumerate() {
            if len != 0 {
                *window = Some(Arc::new(BarWindow::new(&fd, layout.base, bar, len)?));
            }
        }
        let stat = fstat(&*fd).map_err(raw)?;
        let id = (stat.st_dev, stat.st_ino);
        let state = Mutex::new(State { accessible: true, saved: Vec::new() });
        let memfd =
            Arc::new(Memfd { fd, base: layout.base, size, id, windows, peers: Default::default(), holder, state });
        file::register(&memfd);
        Ok(memfd)
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// What a device reaches by a program's mapping of `len` bytes at `offset`
    /// of the file, and where in it: `EFAULT` where no BAR can be touched.
    /// `None`: a file of which nothing is known but its pages.
    pub(crate) fn peer(&self, offset: u64, len: u64) -> Result<Option<Pinned>, Errno> {
        let within = offset.checked_sub(self.base).ok_or(Errno::EFAULT)?;
        let bar = usize::try_from(within >> BAR_SHIFT).map_err(|_| Errno::EFAULT)?;
        let Some(peer) = self.peers.get(bar).ok_or(Errno::EFAULT)?.get() else { return Ok(None) };
        let within = within & ((1 << BAR_SHIFT) - 1);
        let window = self.windows.get(bar).and_then(Option::as_ref).ok_or(Errno::EFAULT)?;
        let end = within.checked_add(len).ok_or(Errno::EFAULT)?;
        if end > round_to_pages(window.len as u64).ok_or(Errno::EFAULT)? || !self.state().accessible {
            return Err(Errno::EFAULT);
        }
        Ok(Some(Pinned { memory: Arc::clone(peer), offset: within }))
    }

    /// Device and inode number, as `stat` gives them: what tells a program's
    /// descriptor or mapping of this file from others.
    #[must_use]
    pub fn id(&self) -> (u64, u64) {
        self.id
    }

    /// A fresh open file description of the same file, for a program:
    /// `flags` are those of `open` (`O_RDWR`, `O_NONBLOCK` …). Close-on-exec.
    pub fn reopen(&self, flags: i32) -> Result<OwnedFd, Errno> {
        let (write, others) = (flags & libc::O_ACCMODE != libc::O_RDONLY, flags & !libc::O_ACCMODE);
        OpenOptions::new()
            .read(flags & libc::O_ACCMODE != libc::O_WRONLY)
            .write(write)
            .custom_flags(others | libc::O_CLOEXEC)
            .open(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
            .map(OwnedFd::from)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Puts the contents aside from the end down, and shortens the file by
    /// each piece, so that it never needs twice the memory.
    ///
    /// A pipe gets the pages themselves, which then leave the file: what the
    /// program stores until the last moment is in them. Of a page that it
    /// stores to for the first time just now that is not so.
    fn close(&self, saved: &mut Vec<(u64, Box<[u8]>)>) -> Result<(), Raw> {
        let file = self.file()?;
        for (start, end) in self.data()?.into_iter().rev() {
            let mut stop = end;
            while stop > start {
                let pages = Pages::new().ok();
                let piece = pages.as_ref().map_or(PIECE, |pages| pages.room.min(PIECE));
                let from = stop.saturating_sub(piece).max(start);
                let mut bytes = vec![0; usize::try_from(stop - from).unwrap_or(0)];
                let taken = pages.as_ref().map_or(0, |pages| pages.take(&file, from, bytes.len()).min(bytes.len()));
                let (head, tail) = bytes.split_at_mut(taken);
                // A program that has shortened the file has lost them itself.
                let mut kept = tail.is_empty() || file.read_exact_at(tail, from + taken as u64).is_ok();
                ftruncate(&*self.fd, from)?;
                kept &= head.is_empty() || pages.is_some_and(|pages| pages.read(head).is_ok());
                if kept {
                    saved.push((from, bytes.into()));
                }
                stop = from;
            }
        }
        ftruncate(&*self.fd, self.base)
    }

    /// Ranges of the BARs that hold pages, ascending.
    fn data(&self) -> Result<Vec<(u64, u64)>, Raw> {
        let mut ranges = Vec::new();
        let mut at = self.base;
        while at < self.size {
            let start = match seek(&*self.fd, SeekFrom::Data(at)) {
                Ok(start) => start,
                // No data up to the end; or the program has shortened the file.
                Err(Raw::NXIO) => break,
                Err(e) => return Err(e),
            };
            let end = seek(&*self.fd, SeekFrom::Hole(start))?;
            ranges.push((start, end));
            at = end;
        }
        Ok(ranges)
    }

    fn open(&self, saved: &mut Vec<(u64, Box<[u8]>)>) -> Result<(), Raw> {
        let file = self.file()?;
        while let Some((at, bytes)) = saved.pop() {
            // A failure (no memory) loses register contents, as the trace says.
            if let Err(error) = file.write_all_at(&bytes, at) {
                tracing::warn!(%error, at, "contents of a BAR are lost");
            }
        }
        ftruncate(&*self.fd, self.size)?;
        for window in self.windows.iter().flatten().filter(|window| window.mapping.is_broken()) {
            // Failing leaves private pages: the program that truncated the
            // file does not see the device, and nobody else is touched.
            let _ = window.mapping.repair(self.fd.as_fd());
        }
        Ok(())
    }

    fn file(&self) -> Result<File, Raw> {
        Ok(File::from(rustix::io::fcntl_dupfd_cloexec(&*self.fd, 0)?))
    }
}

/// A pipe that holds pages of a file.
struct Pages {
    out: File,
    inward: OwnedFd,
    /// Bytes that it has room for.
    room: u64,
}

impl Pages {
    fn new() -> Result<Pages, Raw> {
        let (out, inward) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user may have too many pipes for more than a little.
        let _ = fcntl_setpipe_size(&inward, PIPE);
        let room = fcntl_getpipe_size(&inward)?;
        Ok(Pages { out: File::from(out), inward, room: room as u64 })
    }

    /// Takes pages of a file in; how many bytes from `from` on.
    fn take(&self, file: &File, from: u64, len: usize) -> usize {
        let mut taken = 0;
        while taken < len {
            let mut at = from + taken as u64;
            match splice(file, Some(&mut at), &self.inward, None, len - taken, SpliceFlags::NONBLOCK) {
                Ok(0) | Err(_) => break,
                Ok(more) => taken += more,
            }
        }
        taken
    }

    fn read(mut self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.out.read_exact(bytes)
    }
}

impl BarWindow {
    fn new(fd: &OwnedFd, base: u64, bar: usize, len: u64) -> Result<BarWindow, Errno> {
        let start = bar_start(base, bar).ok_or(Errno::EFBIG)?;
        let whole = round_to_pages(len).and_then(|len| usize::try_from(len).ok()).ok_or(Errno::EFBIG)?;
        let mapping = Mapping::new(fd.as_fd(), start, whole, true, crate::page_size())
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::ENOMEM)))?;
        Ok(BarWindow { mapping, len: usize::try_from(len).unwrap_or(whole) })
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl DeviceFile for Memfd {
    fn window(&self, bar: usize) -> Option<Arc<dyn Window>> {
        let window = self.windows.get(bar)?.as_ref()?;
        Some(Arc::clone(window) as Arc<dyn Window>)
    }

    fn hold(&self, on: bool) -> bool {
        let Some(holder) = &self.holder else { return false };
        if on {
            return holder.hold(self.id);
        }
        holder.release(self.id);
        true
    }

    fn set_accessible(&self, on: bool) {
        let mut state = self.state();
        if state.accessible == on {
            return;
        }
        state.accessible = on;
        let mut saved = std::mem::take(&mut state.saved);
        let done = if on { self.open(&mut saved) } else { self.close(&mut saved) };
        if let Err(error) = done {
            tracing::error!(%error, on, "a device's file cannot be changed");
            if !on {
                // The fence counts more than the contents.
                let _ = ftruncate(&*self.fd, self.base);
            }
        }
        state.saved = if on { Vec::new() } else { saved };
    }

    fn connect(&self, bar: usize, peer: Arc<dyn Memory>) {
        if let Some(place) = self.peers.get(bar) {
            let _ = place.set(peer);
        }
    }
}

fn bar_start(base: u64, bar: usize) -> Option<u64> {
    base.checked_add(u64::try_from(bar).ok()? << BAR_SHIFT)
}

fn create() -> Result<OwnedFd, Raw> {
    // From 6.3 on a machine may insist on "not executable"; earlier kernels
    // refuse the flag.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create("vfio-device", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Raw::INVAL) => memfd_create("vfio-device", flags)?,
        made => made?,
    };
    fcntl_add_seals(&fd, SealFlags::SEAL)?;
    Ok(fd)
}
