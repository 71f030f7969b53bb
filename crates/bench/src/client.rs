// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client: a small program that makes VFIO calls by plain system calls and
//! tells how long they took.
//!
//! It is the same program under `vfuse run` ([`VFIO`]) and under the bare
//! supervisor ([`FLOOR`]), which answers without looking, so that any
//! descriptor will do. It takes orders from standard input, a verb and a count
//! a line, and answers `ok NUMBER` or `error TEXT`.
#![allow(unsafe_code)] // ioctl, pread and mmap of a client

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use uapi::vfio::{container, device, group, type1};

use crate::iommufd::client::{Iommufd, Kind};
use crate::migration::client as streams;
use crate::resets::Card;
use crate::vdpa::client::Vdpa;

/// The word on the command line that makes this program a client.
pub(crate) const WORD: &str = "client";
/// A client of VFIO.
pub(crate) const VFIO: &str = "vfio";
/// A client of the bare supervisor.
pub(crate) const FLOOR: &str = "floor";
/// A client of `/dev/iommu`.
pub(crate) const IOMMUFD: &str = "iommufd";
/// The same with the selftest's mock device.
pub(crate) const IOMMUFD_TEST: &str = "iommufd-test";
/// The same for the bare supervisor.
pub(crate) const IOMMUFD_FLOOR: &str = "iommufd-floor";
/// The same with a device that logs what it writes.
pub(crate) const LOGGING: &str = "logging";
/// A client that answers page requests.
pub(crate) const FAULTS: &str = "faults";
/// A client that has a card of eight functions open.
pub(crate) const RESETS: &str = "resets";
/// A client of vhost-vdpa.
pub(crate) const VDPA: &str = "vdpa";
/// The same for the bare supervisor.
pub(crate) const VDPA_FLOOR: &str = "vdpa-floor";
/// A program with memory that others look at.
pub(crate) const MEMORY: &str = "memory";

/// `VFIO_CHECK_EXTENSION`: no memory.
pub(crate) const CHECK: &str = "check";
/// `VFIO_GET_API_VERSION`: no memory, and the descriptor is looked up each time.
pub(crate) const VERSION: &str = "version";
/// `VFIO_DEVICE_GET_REGION_INFO`: memory is read and written.
pub(crate) const REGION: &str = "region";
/// Four bytes of configuration space.
pub(crate) const CONFIG: &str = "config";
/// `VFIO_IOMMU_MAP_DMA` and `VFIO_IOMMU_UNMAP_DMA` of a page.
pub(crate) const PAIR: &str = "pair";
/// Maps this many pages, once; the pairs take place among them.
pub(crate) const FILL: &str = "fill";
/// `VFIO_DEVICE_PCI_HOT_RESET` of the card.
pub(crate) const HOT_RESET: &str = "hot-reset";
/// Address of private memory.
pub(crate) const PRIVATE: &str = "private";
/// Address of shared memory.
pub(crate) const SHARED: &str = "shared";

/// Where the device is that the default lab has.
const BDF: &str = "0000:01:00.0";
const PAGE: u64 = 4096;
/// Where mappings start, for devices.
const IOVA: u64 = 1 << 32;
/// One page of so many is left free among the mappings.
pub(crate) const STRIDE: u64 = 64;
/// Memory to look at, of each kind.
pub(crate) const LOOKED_AT: usize = 64 << 20;

/// Takes orders until there are no more.
pub(crate) fn run(kind: &str) -> ExitCode {
    let mut client = match open(kind) {
        Ok(client) => client,
        Err(error) => {
            println!("error {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("ok 0");
    for line in io::stdin().lines().map_while(Result::ok) {
        match obey(&mut *client, &line) {
            Ok(value) => println!("ok {value}"),
            Err(error) => println!("error {error:#}"),
        }
    }
    ExitCode::SUCCESS
}

fn obey(client: &mut dyn Orders, line: &str) -> Result<f64> {
    let (verb, count) = line.split_once(' ').context("an order is a verb and a count")?;
    client.obey(verb, count.parse()?)
}

/// What takes orders.
pub(crate) trait Orders {
    /// Does something so many times; what it took, mostly ns each.
    fn obey(&mut self, verb: &str, count: u64) -> Result<f64>;
}

fn open(kind: &str) -> Result<Box<dyn Orders>> {
    Ok(match kind {
        VFIO => Box::new(Vfio::open()?),
        FLOOR => Box::new(Vfio::pretend()?),
        IOMMUFD => Box::new(Iommufd::open(Kind::Device)?),
        IOMMUFD_TEST => Box::new(Iommufd::open(Kind::Mock)?),
        IOMMUFD_FLOOR => Box::new(Iommufd::open(Kind::Floor)?),
        LOGGING => Box::new(Iommufd::open(Kind::Logging)?),
        streams::STREAMS => Box::new(streams::Streams::open()?),
        streams::FLOOR => Box::new(streams::Streams::pretend()?),
        streams::PIPES => Box::new(streams::Pipes::new()?),
        FAULTS => Box::new(crate::faults::Faults::open()?),
        RESETS => Box::new(Card::open()?),
        VDPA => Box::new(Vdpa::open(true)?),
        VDPA_FLOOR => Box::new(Vdpa::open(false)?),
        MEMORY => Box::new(Memory::new()?),
        _ => bail!("no client is called {kind}"),
    })
}

/// Descriptors of a program that drives a device.
struct Vfio {
    container: OwnedFd,
    _group: OwnedFd,
    device: OwnedFd,
    /// Offset of configuration space in the device's file.
    config: i64,
    /// Address of the memory that is mapped for the device.
    memory: u64,
    /// Free pages among the mappings.
    holes: u64,
    random: u64,
}

impl Vfio {
    fn open() -> Result<Vfio> {
        let link = std::fs::read_link(format!("/sys/bus/pci/devices/{BDF}/iommu_group")).context(BDF)?;
        let number = link.file_name().and_then(|name| name.to_str()).context("no group")?;
        let container = node("/dev/vfio/vfio")?;
        let group = node(&format!("/dev/vfio/{number}"))?;
        let mut raw = container.as_raw_fd();
        ioctl(&group, group::SET_CONTAINER, (&raw mut raw) as u64).context("SET_CONTAINER")?;
        ioctl(&container, container::SET_IOMMU, container::extension::TYPE1_V2).context("SET_IOMMU")?;
        let name = CString::new(BDF)?;
        let device = ioctl(&group, group::GET_DEVICE_FD, name.as_ptr() as u64).context("GET_DEVICE_FD")?;
        // SAFETY: the call has just made the descriptor for us alone.
        let device = unsafe { OwnedFd::from_raw_fd(device) };
        let config = region_info(&device)?.offset as i64;
        Ok(Vfio { container, _group: group, device, config, memory: private(PAGE as usize * 64)?, holes: 1, random: 1 })
    }

    /// For the bare supervisor, which looks at the request and the offset only.
    fn pretend() -> Result<Vfio> {
        let config = uapi::region::offset(0, device::region_index::CONFIG) as i64;
        let [container, group, device] = [node("/dev/null")?, node("/dev/null")?, node("/dev/null")?];
        Ok(Vfio { container, _group: group, device, config, memory: private(PAGE as usize * 64)?, holes: 1, random: 1 })
    }

    /// Maps `count` pages one by one, all but every 64th.
    fn fill(&mut self, count: u64) -> Result<()> {
        let pages = count + count / (STRIDE - 1) + STRIDE;
        self.memory = private((pages * PAGE) as usize)?;
        self.holes = (count / (STRIDE - 1)).max(1);
        let used = (0..pages).filter(|page| page % STRIDE != STRIDE - 1);
        for (mapped, page) in used.take(count as usize).enumerate() {
            self.map(page).with_context(|| format!("after {mapped} mappings"))?;
        }
        Ok(())
    }

    fn map(&self, page: u64) -> Result<()> {
        let mut map = type1::DmaMap {
            argsz: size_of::<type1::DmaMap>() as u32,
            flags: (type1::MapFlags::READ | type1::MapFlags::WRITE).bits(),
            vaddr: self.memory + page * PAGE,
            iova: IOVA + page * PAGE,
            size: PAGE,
        };
        ioctl(&self.container, type1::MAP_DMA, (&raw mut map) as u64).context("MAP_DMA")?;
        Ok(())
    }

    fn unmap(&self, page: u64) -> Result<()> {
        let argsz = size_of::<type1::DmaUnmap>() as u32;
        let mut unmap = type1::DmaUnmap { argsz, flags: 0, iova: IOVA + page * PAGE, size: PAGE };
        ioctl(&self.container, type1::UNMAP_DMA, (&raw mut unmap) as u64).context("UNMAP_DMA")?;
        ensure!(unmap.size == PAGE, "UNMAP_DMA has removed {} bytes", unmap.size);
        Ok(())
    }

    fn pair(&mut self) -> Result<()> {
        let page = free_page(&mut self.random, self.holes);
        self.map(page)?;
        self.unmap(page)
    }

    fn config(&self) -> Result<()> {
        let mut value = [0u8; 4];
        // SAFETY: four bytes of buffer, which are valid.
        let got = unsafe { libc::pread64(self.device.as_raw_fd(), value.as_mut_ptr().cast(), 4, self.config) };
        ensure!(got == 4, "pread: {}", io::Error::last_os_error());
        Ok(())
    }

    fn version(&self) -> Result<()> {
        ensure!(ioctl(&self.container, container::GET_API_VERSION, 0)? == 0);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        ensure!(ioctl(&self.container, container::CHECK_EXTENSION, container::extension::TYPE1)? == 1);
        Ok(())
    }
}

impl Orders for Vfio {
    fn obey(&mut self, verb: &str, count: u64) -> Result<f64> {
        let mut one: Box<dyn FnMut() -> Result<()>> = match verb {
            CHECK => Box::new(|| self.check()),
            VERSION => Box::new(|| self.version()),
            REGION => Box::new(|| region_info(&self.device).map(drop)),
            CONFIG => Box::new(|| self.config()),
            PAIR => Box::new(|| self.pair()),
            crate::faults::CYCLE => {
                return crate::faults::wake_and(count, || {
                    self.config()?;
                    self.config()
                });
            }
            FILL => {
                let start = Instant::now();
                self.fill(count)?;
                return Ok(start.elapsed().as_nanos() as f64 / count as f64);
            }
            _ => bail!("no order is called {verb}"),
        };
        // The other side has slept, and on another core.
        for _ in 0..count / 10 {
            one()?;
        }
        crate::timing::each(count, |_| one())
    }
}

/// A page at random of those that a client leaves unmapped: the last of each
/// [`STRIDE`].
pub(crate) fn free_page(random: &mut u64, holes: u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let hole = ((u128::from(*random) * u128::from(holes)) >> 64) as u64;
    hole * STRIDE + STRIDE - 1
}

fn region_info(device: &OwnedFd) -> Result<device::RegionInfo> {
    let argsz = size_of::<device::RegionInfo>() as u32;
    let mut info = device::RegionInfo { argsz, index: device::region_index::CONFIG, ..Default::default() };
    ioctl(device, device::GET_REGION_INFO, (&raw mut info) as u64).context("GET_REGION_INFO")?;
    Ok(info)
}

/// Opens a file for reading and writing.
pub(crate) fn node(path: &str) -> Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).write(true).open(path).with_context(|| path.to_owned())?;
    Ok(file.into())
}

/// Makes a request of a structure that is alive during the call, or of a number.
pub(crate) fn ioctl(fd: &OwnedFd, request: u32, arg: u64) -> io::Result<i32> {
    // SAFETY: the argument is a number, or a pointer to the structure of this
    // request (a string, a descriptor number), alive during the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(request), arg) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// A program with memory that others look at.
struct Memory {
    private: u64,
    shared: u64,
}

impl Memory {
    fn new() -> Result<Memory> {
        let fd = rustix::fs::memfd_create(c"bench", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, LOOKED_AT as u64)?;
        let memory =
            Memory { private: private(LOOKED_AT)?, shared: map(LOOKED_AT, libc::MAP_SHARED, fd.as_raw_fd(), 0)? };
        for start in [memory.private, memory.shared] {
            // SAFETY: mapped above, so long, and used by nobody else.
            unsafe { std::ptr::write_bytes(start as *mut u8, 0x5a, LOOKED_AT) };
        }
        Ok(memory)
    }
}

impl Orders for Memory {
    fn obey(&mut self, verb: &str, _count: u64) -> Result<f64> {
        // Addresses have 47 bits, so a float holds them.
        match verb {
            PRIVATE => Ok(self.private as f64),
            SHARED => Ok(self.shared as f64),
            _ => bail!("no order is called {verb}"),
        }
    }
}

/// Private memory, for good. Pages that nobody touches cost nothing.
pub(crate) fn private(len: usize) -> Result<u64> {
    map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
}

/// A new mapping, for good.
pub(crate) fn map(len: usize, flags: i32, fd: i32, offset: i64) -> Result<u64> {
    // SAFETY: a new mapping, wherever there is room.
    let addr = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
    ensure!(addr != libc::MAP_FAILED, "mmap of {len} bytes: {}", io::Error::last_os_error());
    Ok(addr as u64)
}
