// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client of `/dev/iommu`: a program with a device, an address space and,
//! where it asks for that, a log of what the device has written.
//!
//! It is the same program under the bare supervisor, where any descriptor and
//! any id will do.
#![allow(unsafe_code)] // memory of a client

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use uapi::iommufd::{
    Command, HwptAlloc, HwptFlags, HwptGetDirtyBitmap, HwptSetDirtyTracking, IoasAlloc, IoasMap, IoasUnmap, MapFlags,
    SetOption, option,
};
use uapi::iommufd_test::{self as test, TestCmd, op};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd};
use uapi::vfio::device::{self, FeatureFlags, feature};
use uapi::vfio::migration::{LoggingControl, LoggingRange, LoggingReport};
use zerocopy::{FromBytes, IntoBytes};

use super::card::{self, Card};
use crate::client::{Orders, STRIDE, free_page, ioctl, map, node, private};

/// `IOMMU_IOAS_MAP` and `IOMMU_IOAS_UNMAP` of a page.
pub(super) const PAIR: &str = "pair";
/// Maps this many pages, once; the pairs take place among them.
pub(super) const FILL: &str = "fill";
/// Maps 16 GiB so many times, each time in one call and elsewhere.
pub(super) const LARGE: &str = "large";
/// `IOMMU_HWPT_GET_DIRTY_BITMAP` of 16 GiB by pages, once: nothing is dirty, one
/// page of a hundred is, all are.
pub(super) const NONE: &str = "none";
/// See [`NONE`].
pub(super) const SOME: &str = "some";
/// See [`NONE`].
pub(super) const ALL: &str = "all";
/// The same of so many GiB, all dirty, by pages of 8 KiB.
pub(super) const WIDE: &str = "wide";
/// The same by pages of 4 KiB of a log of MiB: the selftest's.
pub(super) const FINE: &str = "fine";

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Where mappings start, for devices.
const IOVA: u64 = 1 << 32;
/// Where the memory is that a log is about.
const LOGGED: u64 = 1 << 40;
/// Bytes of that.
const SIZE: u64 = 16 * GIB;
/// Where the accelerator's own memory is.
const CARD: u64 = 1 << 30;
/// Bytes that stand behind all of the logged memory, again and again.
const BEHIND: u64 = 64 * MIB;

/// What a client is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A device of the lab.
    Device,
    /// The selftest's mock device.
    Mock,
    /// A device of the lab that logs what it writes.
    Logging,
    /// The bare supervisor.
    Floor,
}

/// A program with `/dev/iommu` open.
pub(crate) struct Iommufd {
    kind: Kind,
    iommu: OwnedFd,
    device: Option<OwnedFd>,
    device_id: u32,
    ioas: u32,
    memory: u64,
    holes: u64,
    random: u64,
    bitmap: Vec<u64>,
    logged: Option<Logged>,
    swept: u64,
    /// Asks the device, and not the domain.
    reports: bool,
}

/// What a log is about.
struct Logged {
    /// 0: the device's own log.
    hwpt: u32,
    card: Option<Card>,
    /// Bytes that are mapped.
    length: u64,
}

impl Iommufd {
    /// Opens what it needs; its device uses its address space.
    pub(crate) fn open(kind: Kind) -> Result<Iommufd> {
        let iommu = node(if kind == Kind::Floor { "/dev/null" } else { "/dev/iommu" })?;
        let memory = private(PAGE as usize * 64)?;
        let mut client = Iommufd {
            kind,
            iommu,
            device: None,
            device_id: 0,
            ioas: 0,
            memory,
            holes: 1,
            random: 1,
            bitmap: vec![1; (SIZE / PAGE / 64) as usize],
            logged: None,
            swept: 0,
            reports: kind == Kind::Logging,
        };
        if kind == Kind::Floor {
            return Ok(client);
        }
        client.ioas = client.command(IoasAlloc::default()).context("IOAS_ALLOC")?.out_ioas_id;
        if matches!(kind, Kind::Device | Kind::Logging) {
            let device = node("/dev/vfio/devices/vfio0")?;
            let iommufd = client.iommu.as_raw_fd();
            let mut bind = BindIommufd { argsz: 24, iommufd, ..BindIommufd::default() };
            ioctl(&device, device::BIND_IOMMUFD, (&raw mut bind) as u64).context("BIND_IOMMUFD")?;
            client.device_id = bind.out_devid;
            client.device = Some(device);
            client.attach(client.ioas)?;
        }
        Ok(client)
    }

    fn command<T: Command + IntoBytes + FromBytes>(&self, command: T) -> Result<T> {
        let mut bytes = command.as_bytes().to_vec();
        let size = (bytes.len() as u32).to_ne_bytes();
        bytes[..4].copy_from_slice(&size);
        ioctl(&self.iommu, T::REQUEST, bytes.as_mut_ptr() as u64)?;
        T::read_from_bytes(&bytes).ok().context("length")
    }

    fn attach(&self, pt_id: u32) -> Result<()> {
        let device = self.device.as_ref().context("no device")?;
        let mut attach = AttachIommufdPt { argsz: 16, pt_id, ..AttachIommufdPt::default() };
        ioctl(device, device::ATTACH_IOMMUFD_PT, (&raw mut attach) as u64).context("ATTACH_IOMMUFD_PT")?;
        Ok(())
    }

    fn map(&self, user_va: u64, iova: u64, length: u64) -> Result<()> {
        let flags = (MapFlags::FIXED_IOVA | MapFlags::READABLE | MapFlags::WRITEABLE).bits();
        let size = size_of::<IoasMap>() as u32;
        let mut map = IoasMap { size, flags, ioas_id: self.ioas, user_va, iova, length, ..IoasMap::default() };
        ioctl(&self.iommu, IoasMap::REQUEST, (&raw mut map) as u64).context("IOAS_MAP")?;
        Ok(())
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        let size = size_of::<IoasUnmap>() as u32;
        let mut unmap = IoasUnmap { size, ioas_id: self.ioas, iova, length };
        ioctl(&self.iommu, IoasUnmap::REQUEST, (&raw mut unmap) as u64).context("IOAS_UNMAP")?;
        ensure!(unmap.length == length, "IOAS_UNMAP has removed {} bytes", unmap.length);
        Ok(())
    }

    fn pair(&mut self) -> Result<()> {
        let page = free_page(&mut self.random, self.holes);
        self.map(self.memory + page * PAGE, IOVA + page * PAGE, PAGE)?;
        self.unmap(IOVA + page * PAGE, PAGE)
    }

    /// Maps `count` pages one by one, all but every 64th.
    fn fill(&mut self, count: u64) -> Result<()> {
        let pages = count + count / (STRIDE - 1) + STRIDE;
        self.memory = private((pages * PAGE) as usize)?;
        self.holes = (count / (STRIDE - 1)).max(1);
        let used = (0..pages).filter(|page| page % STRIDE != STRIDE - 1);
        for (mapped, page) in used.take(count as usize).enumerate() {
            let map = self.map(self.memory + page * PAGE, IOVA + page * PAGE, PAGE);
            map.with_context(|| format!("after {mapped} mappings"))?;
        }
        Ok(())
    }

    fn large(&self, count: u64) -> Result<()> {
        let memory = private(SIZE as usize)?;
        (0..count).try_for_each(|n| self.map(memory, LOGGED + n * SIZE, SIZE))
    }

    /// Dirty tracking of so many bytes at [`LOGGED`], of memory that is the same
    /// every 64 MiB, in one mapping.
    fn log(&mut self, length: u64) -> Result<&mut Logged> {
        if self.logged.is_none() {
            self.logged = Some(if self.kind == Kind::Mock { self.log_mock()? } else { self.log_device()? });
        }
        let old = self.logged.as_ref().map_or(0, |logged| logged.length);
        if old != length {
            if old != 0 {
                self.unmap(LOGGED, old)?;
            }
            let memory = repeated(length)?;
            self.map(memory, LOGGED, length)?;
        }
        let logged = self.logged.as_mut().context("no log")?;
        logged.length = length;
        Ok(logged)
    }

    fn hwpt(&self, flags: HwptFlags, dev_id: u32, data: Option<&test::HwptData>) -> Result<u32> {
        let mut alloc = HwptAlloc { flags: flags.bits(), dev_id, pt_id: self.ioas, ..HwptAlloc::default() };
        if let Some(data) = data {
            (alloc.data_type, alloc.data_len) = (test::HWPT_DATA, size_of::<test::HwptData>() as u32);
            alloc.data_uptr = std::ptr::from_ref(data) as u64;
        }
        let hwpt_id = self.command(alloc).context("HWPT_ALLOC")?.out_hwpt_id;
        let on = HwptSetDirtyTracking { flags: 1, hwpt_id, ..HwptSetDirtyTracking::default() };
        self.command(on).context("SET_DIRTY_TRACKING")?;
        Ok(hwpt_id)
    }

    fn log_device(&mut self) -> Result<Logged> {
        let hwpt = if self.kind == Kind::Logging { self.start_logging().map(|()| 0)? } else { self.log_domain()? };
        let memory = private(card::MEMORY as usize)?;
        self.map(memory, CARD, card::MEMORY.next_multiple_of(PAGE))?;
        let card = Card::new(self.device.as_ref().context("no device")?, (memory, CARD))?;
        Ok(Logged { hwpt, card: Some(card), length: 0 })
    }

    /// The domain's log.
    fn log_domain(&self) -> Result<u32> {
        let hwpt = self.hwpt(HwptFlags::DIRTY_TRACKING, self.device_id, None)?;
        let device = self.device.as_ref().context("no device")?;
        let mut detach = uapi::vfio::cdev::DetachIommufdPt { argsz: 12, ..Default::default() };
        ioctl(device, device::DETACH_IOMMUFD_PT, (&raw mut detach) as u64).context("DETACH_IOMMUFD_PT")?;
        self.attach(hwpt)?;
        Ok(hwpt)
    }

    /// The device's own log.
    fn start_logging(&self) -> Result<()> {
        let range = LoggingRange { iova: LOGGED, length: SIZE };
        let ranges = (&raw const range) as u64;
        let mut control = LoggingControl { page_size: PAGE, num_ranges: 1, reserved: 0, ranges };
        self.feature(FeatureFlags::SET.bits() | feature::DMA_LOGGING_START, &mut control).context("DMA_LOGGING_START")
    }

    /// `VFIO_DEVICE_FEATURE` with this behind the header.
    fn feature<T: IntoBytes + FromBytes + zerocopy::Immutable>(&self, flags: u32, data: &mut T) -> Result<()> {
        let mut bytes = [0u64; 8];
        let (header, rest) = bytes.split_at_mut(1);
        let len = size_of::<T>();
        header[0] = u64::from(8 + len as u32) | u64::from(flags) << 32;
        rest.as_mut_bytes()[..len].copy_from_slice(data.as_bytes());
        ioctl(self.device.as_ref().unwrap_or(&self.iommu), device::FEATURE, bytes.as_mut_ptr() as u64)?;
        Ok(())
    }

    fn log_mock(&mut self) -> Result<Logged> {
        // Its device needs an address space of its own: this one's pages are larger.
        let other = self.command(IoasAlloc::default()).context("IOAS_ALLOC")?.out_ioas_id;
        let mock = TestCmd { op: op::MOCK_DOMAIN, id: other, ..TestCmd::default() };
        let device = self.command(mock).context("MOCK_DOMAIN")?.u32_at(24);
        let data = test::HwptData { iotlb: 0, pagetable_type: test::TABLE_HUGE };
        let hwpt = self.hwpt(HwptFlags::DIRTY_TRACKING, device, Some(&data))?;
        Ok(Logged { hwpt, card: None, length: 0 })
    }

    /// Makes `dirty` pages dirty, then asks for the bitmap; what that took, in ns.
    fn get(&mut self, what: &str, length: u64, page_size: u64) -> Result<f64> {
        if self.kind == Kind::Floor {
            if what == ALL {
                self.sweep()?;
            }
            return self.ask(0, length, page_size);
        }
        let (random, is_new) = (self.random, self.logged.is_none());
        let logged = self.log(length)?;
        let hwpt = logged.hwpt;
        match (&mut logged.card, what) {
            (_, NONE) => {}
            (Some(card), SOME) => {
                let page = |n: u64| (n * 100 + (random >> (n % 57) & 63)) % (length / PAGE);
                let pages: Vec<u64> = (0..length / PAGE / 100).map(|n| LOGGED + page(n) * PAGE).collect();
                card.touch(&pages)?;
            }
            (Some(card), _) => card.fill(LOGGED, length)?,
            (None, _) => self.mark(hwpt, length)?,
        }
        if is_new {
            // The first time finds nothing in any cache.
            self.ask(hwpt, length, page_size)?;
            return self.get(what, length, page_size);
        }
        let took = self.ask(hwpt, length, page_size)?;
        let bits: u64 = self.bitmap.iter().map(|word| u64::from(word.count_ones())).sum();
        let expected = match what {
            NONE => 0,
            SOME => length / PAGE / 100,
            _ => length / page_size,
        };
        ensure!(bits.abs_diff(expected) <= expected / 10, "{bits} bits are set, not {expected}");
        Ok(took)
    }

    /// All MiB of the range are dirty.
    fn mark(&self, hwpt: u32, length: u64) -> Result<()> {
        let bits = vec![u8::MAX; (length / MIB).div_ceil(8) as usize];
        let mut cmd = TestCmd { op: op::DIRTY, id: hwpt, ..TestCmd::default() };
        for (offset, value) in [(24, LOGGED), (32, length), (40, MIB), (48, bits.as_ptr() as u64)] {
            cmd.set_u64(offset, value);
        }
        self.command(cmd).context("DIRTY")?;
        Ok(())
    }

    /// Writes to as much memory as a device does that writes to all that is
    /// logged: its bitmap lies in no cache then.
    fn sweep(&mut self) -> Result<()> {
        if self.swept == 0 {
            self.swept = private(BEHIND as usize)?;
        }
        // SAFETY: mapped above, so long, and used for nothing else.
        unsafe { std::ptr::write_bytes(self.swept as *mut u8, 0x5a, BEHIND as usize) };
        Ok(())
    }

    fn ask(&mut self, hwpt_id: u32, length: u64, page_size: u64) -> Result<f64> {
        self.bitmap.fill(0);
        let get = HwptGetDirtyBitmap { hwpt_id, iova: LOGGED, length, page_size, ..HwptGetDirtyBitmap::default() };
        let size = size_of::<HwptGetDirtyBitmap>() as u32;
        let mut get = HwptGetDirtyBitmap { size, data: self.bitmap.as_mut_ptr() as u64, ..get };
        // The other side has slept, and on another core.
        for _ in 0..20 {
            let size = size_of::<SetOption>() as u32;
            let mut look = SetOption { size, option_id: option::RLIMIT_MODE, op: option::GET, ..SetOption::default() };
            ioctl(&self.iommu, SetOption::REQUEST, (&raw mut look) as u64).context("OPTION")?;
        }
        let start = Instant::now();
        if hwpt_id == 0 && self.reports {
            let mut report = LoggingReport { iova: LOGGED, length, page_size, bitmap: self.bitmap.as_mut_ptr() as u64 };
            let flags = FeatureFlags::GET.bits() | feature::DMA_LOGGING_REPORT;
            self.feature(flags, &mut report).context("DMA_LOGGING_REPORT")?;
            return Ok(start.elapsed().as_nanos() as f64);
        }
        ioctl(&self.iommu, HwptGetDirtyBitmap::REQUEST, (&raw mut get) as u64).context("GET_DIRTY_BITMAP")?;
        Ok(start.elapsed().as_nanos() as f64)
    }
}

impl Orders for Iommufd {
    fn obey(&mut self, verb: &str, count: u64) -> Result<f64> {
        match verb {
            PAIR => {
                // The other side has slept, and on another core.
                (0..count / 10).try_for_each(|_| self.pair())?;
                crate::timing::each(count, |_| self.pair())
            }
            FILL => {
                let start = Instant::now();
                self.fill(count)?;
                Ok(start.elapsed().as_nanos() as f64 / count as f64)
            }
            LARGE => self.large(count).map(|()| 0.0),
            _ if verb.starts_with("report-") => {
                self.reports = true;
                self.obey(verb.trim_start_matches("report-"), count)
            }
            NONE | SOME | ALL => {
                let mut times = Vec::new();
                for _ in 0..count {
                    times.push(self.get(verb, SIZE, PAGE)?);
                }
                Ok(crate::timing::median(times))
            }
            WIDE => self.get(ALL, count * GIB, 2 * PAGE),
            FINE => self.get(ALL, count * GIB, PAGE),
            _ => bail!("no order is called {verb}"),
        }
    }
}

/// Memory of so many bytes which is the same every 64 MiB.
fn repeated(length: u64) -> Result<u64> {
    let fd = rustix::fs::memfd_create(c"bench", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, BEHIND)?;
    let memory = private(length as usize)?;
    for n in 0..length / BEHIND {
        let at = (memory + n * BEHIND) as *mut libc::c_void;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: replaces a part of the mapping just made, which nobody uses.
        let done =
            unsafe { libc::mmap(at, BEHIND as usize, prot, libc::MAP_SHARED | libc::MAP_FIXED, fd.as_raw_fd(), 0) };
        ensure!(done == at, "mmap: {}", std::io::Error::last_os_error());
    }
    // Its pages are there.
    let _ = map(BEHIND as usize, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), 0)?;
    Ok(memory)
}
