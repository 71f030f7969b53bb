// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests of accelerators that a program answers through a fault queue:
//! one after the other, beside what no such way can save (a wake and two calls
//! that are answered in another process), and many at a time.
#![allow(unsafe_code)] // system calls and mapped memory of a client

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use models::dsa::spec::{self, Descriptor, command, flag, opcode, wqcfg};
use uapi::iommufd::{Command, FaultQueueAlloc, HwptAlloc, IoasAlloc, IoasMap};
use uapi::iommufd_events::{PageAnswer, PageFault};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd};
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, GET_REGION_INFO, RegionInfo};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::client::{self, Orders};
use crate::floor;
use crate::process::{Client, vfuse_run};
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;

/// Page requests one after the other; of the floor's client: a wake and two calls.
pub(crate) const CYCLE: &str = "cycle";
/// This many outstanding at a time.
const STORM: &str = "storm";

const ROUNDS: usize = 101;
const CYCLES: u64 = 100;
const OUTSTANDING: u64 = 512;
const DEVICES: u64 = 64;
/// IOVAs: of the completion records, and of nothing.
const RECORDS: u64 = 1 << 20;
const NOTHING: u64 = 1 << 40;
const PAGE: u64 = 4096;

/// Rows of page requests.
pub(crate) fn rows(table: &mut Table) {
    let floor = floor::start(client::FLOOR, false).map(RefCell::new);
    let one = start(1).map(RefCell::new);
    table.row("page request, read, answer, resume / wake + two bare", Goal::AtMost(1.3, ""), || {
        let (one, floor) = (clone(&one)?, clone(&floor)?);
        let ask = |client: &RefCell<Client>| client.borrow_mut().ask(CYCLE, CYCLES);
        Ok(Figures::times(in_turn(ROUNDS, || ask(one), || ask(floor))?))
    });
    let rate = |ns: f64| format!("{:.0} k/s", 1e6 / ns);
    table.row("  faults, 512 outstanding of a device / one at a time", Goal::None, || {
        let one = clone(&one)?;
        let ask = |verb, count| one.borrow_mut().ask(verb, count);
        let (storm, single) = in_turn(ROUNDS, || ask(STORM, OUTSTANDING), || ask(CYCLE, CYCLES))?;
        Ok(Figures { ours: rate(storm), other: rate(single), figure: single / storm })
    });
    table.row("  faults, 8 outstanding of each of 64 devices / of one", Goal::None, || {
        let (one, many) = (clone(&one)?, RefCell::new(start(DEVICES)?));
        let ask = |client: &RefCell<Client>| client.borrow_mut().ask(STORM, 8);
        let (many, single) = in_turn(ROUNDS, || ask(&many), || ask(one))?;
        Ok(Figures { ours: rate(many), other: rate(single), figure: single / many })
    });
}

fn clone(client: &Result<RefCell<Client>>) -> Result<&RefCell<Client>> {
    client.as_ref().map_err(|error| anyhow!("{error:#}"))
}

fn start(devices: u64) -> Result<Client> {
    // Eight functions behind a port: bus 0 has no room for a port for each.
    let address = |n: u64| format!("{:02x}:00.{}", 1 + n / 8, n % 8);
    let keys: Vec<String> =
        (0..devices).map(|n| format!("dsa,addr={},acs=true,queues=1,entries=512", address(n))).collect();
    let mut command = vfuse_run(keys.iter().flat_map(|keys| ["--device", keys]))?;
    command.arg(std::env::current_exe()?).args([client::WORD, client::FAULTS]);
    Client::start(command)
}

/// The client's side: accelerators that share a fault queue.
pub(crate) struct Faults {
    cards: Vec<Card>,
    faults: File,
}

struct Card {
    _device: File,
    /// The first portal.
    portal: Shared,
    place: usize,
    /// Where its records are.
    records: u64,
}

/// Shared memory, for good.
#[derive(Clone, Copy)]
struct Shared(u64);

impl Shared {
    fn long(self, offset: u64) -> &'static AtomicU64 {
        // SAFETY: callers stay inside the mapping, which is never unmapped, at
        // multiples of 8.
        unsafe { AtomicU64::from_ptr((self.0 + offset) as *mut u64) }
    }
}

impl Faults {
    pub(crate) fn open() -> Result<Faults> {
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path).with_context(|| path.to_owned());
        let iommufd = open("/dev/iommu")?;
        let ioas = call(&iommufd, IoasAlloc::default())?.out_ioas_id;
        let queue = call(&iommufd, FaultQueueAlloc::default())?;
        // SAFETY: the call has just made it for us alone.
        let faults = unsafe { File::from_raw_fd(queue.out_fault_fd.cast_signed()) };
        let length = OUTSTANDING * 32 * DEVICES;
        let memory = rustix::fs::memfd_create(c"bench", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, length)?;
        let records = Shared(client::map(length as usize, libc::MAP_SHARED, memory.as_raw_fd(), 0)?);
        let map = IoasMap { flags: 7, ioas_id: ioas, user_va: records.0, length, iova: RECORDS, ..IoasMap::default() };
        call(&iommufd, map)?;
        let mut cards = Vec::new();
        let mut nodes: Vec<_> = std::fs::read_dir("/dev/vfio/devices")?.collect::<std::io::Result<_>>()?;
        nodes.sort_by_key(std::fs::DirEntry::file_name);
        for (n, node) in nodes.iter().enumerate() {
            let device = open(&node.path().to_string_lossy())?;
            let bind = BindIommufd { argsz: 16, iommufd: iommufd.as_raw_fd(), ..BindIommufd::default() };
            let dev_id = ioctl(&device, BIND_IOMMUFD, bind)?.out_devid;
            let hwpt =
                HwptAlloc { dev_id, pt_id: ioas, flags: 4, fault_id: queue.out_fault_id, ..HwptAlloc::default() };
            let pt_id = call(&iommufd, hwpt)?.out_hwpt_id;
            ioctl(&device, ATTACH_IOMMUFD_PT, AttachIommufdPt { argsz: 12, pt_id, ..AttachIommufdPt::default() })?;
            let region = |index| -> Result<u64> {
                let info = RegionInfo { argsz: size_of::<RegionInfo>() as u32, index, ..RegionInfo::default() };
                Ok(ioctl(&device, GET_REGION_INFO, info)?.offset)
            };
            let (registers, portals, config) = (region(0)?, region(2)?, region(7)?);
            device.write_all_at(&6_u16.to_le_bytes(), config + 4)?;
            let register = |offset: u64, value: u32| device.write_all_at(&value.to_le_bytes(), registers + offset);
            let mode = wqcfg::DEDICATED | wqcfg::BLOCK_ON_FAULT | 1 << 4;
            for (word, value) in [(wqcfg::SIZE, 512), (wqcfg::MODE, mode), (wqcfg::LIMITS, 31 | 10 << 5)] {
                register(spec::WQCFG + 4 * word as u64, value)?;
            }
            register(spec::GRPCFG, 1)?;
            register(spec::GRPCFG + spec::GROUP_ENGINES, 1)?;
            for number in [command::ENABLE_DEVICE, command::ENABLE_QUEUE] {
                register(spec::CMD, number << 20)?;
                let mut status = [0; 4];
                device.read_exact_at(&mut status, registers + spec::CMDSTS)?;
                ensure!(status == [0; 4], "command {number}: {status:x?}");
            }
            let portal = Shared(client::map(PAGE as usize, libc::MAP_SHARED, device.as_raw_fd(), portals as i64)?);
            cards.push(Card { _device: device, portal, place: 0, records: records.0 + n as u64 * OUTSTANDING * 32 });
        }
        ensure!(!cards.is_empty(), "no devices");
        // They stay as long as the queue does.
        std::mem::forget((iommufd, memory));
        Ok(Faults { cards, faults })
    }

    /// Has each device ask for `count` pages, and answers that there are none;
    /// ns each.
    fn storm(&mut self, count: u64) -> Result<f64> {
        ensure!(count <= OUTSTANDING);
        let start = Instant::now();
        let first = self.cards[0].records;
        for card in &mut self.cards {
            (0..count).for_each(|n| card.submit(n, card.records - first));
        }
        let mut left = count * self.cards.len() as u64;
        let total = left;
        let mut buffer = vec![0; 40 * 512];
        while left > 0 {
            let mut poll = libc::pollfd { fd: self.faults.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, for the time of the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, 5000) };
            ensure!(ready == 1, "no page request comes: {left} are missing");
            let len = self.faults.read(&mut buffer)?;
            let answers: Vec<PageAnswer> = buffer[..len]
                .chunks(40)
                .filter_map(|record| PageFault::read_from_bytes(record).ok())
                .map(|record| PageAnswer { cookie: record.cookie, code: 1 })
                .collect();
            if !answers.is_empty() {
                self.faults.write_all(answers.as_bytes())?;
            }
            left -= answers.len() as u64;
        }
        for card in &self.cards {
            for n in 0..count {
                while card.status(n) == 0 {
                    std::thread::yield_now();
                }
                ensure!(card.status(n) & 0x7f == 3, "status {}", card.status(n));
            }
        }
        Ok(start.elapsed().as_nanos() as f64 / total as f64)
    }
}

impl Card {
    fn submit(&mut self, n: u64, records: u64) {
        Shared(self.records).long(32 * n).store(0, Ordering::Relaxed);
        let descriptor = Descriptor {
            completion: RECORDS + records + 32 * n,
            destination: NOTHING + n * PAGE,
            size: 64,
            ..Descriptor::new(opcode::FILL, flag::RECORD | flag::REQUEST_RECORD | flag::BLOCK_ON_FAULT)
        };
        let at = (self.place % 64 * spec::DESCRIPTOR_BYTES) as u64;
        self.place += 1;
        while self.portal.long(at).load(Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        for (word, bytes) in descriptor.as_bytes().chunks_exact(8).enumerate().rev() {
            let value = bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            self.portal.long(at + 8 * word as u64).store(value, Ordering::Release);
        }
    }

    fn status(&self, n: u64) -> u8 {
        Shared(self.records).long(32 * n).load(Ordering::Acquire) as u8
    }
}

impl Orders for Faults {
    fn obey(&mut self, verb: &str, count: u64) -> Result<f64> {
        match verb {
            CYCLE => {
                for _ in 0..count / 10 {
                    self.storm(1)?;
                }
                crate::timing::each(count, |_| self.storm(1).map(drop))
            }
            STORM => self.storm(count),
            _ => bail!("no order is called {verb}"),
        }
    }
}

/// The floor of a page request: another thread sees a store and wakes this one
/// by an eventfd, then come two calls.
pub(crate) fn wake_and(count: u64, mut calls: impl FnMut() -> Result<()>) -> Result<f64> {
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    let (asked, stop) = (AtomicU64::new(0), u64::MAX);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seen = 0;
            loop {
                match asked.load(Ordering::Acquire) {
                    now if now == stop => return,
                    now if now != seen => {
                        seen = now;
                        let _ = rustix::io::write(&event, &1_u64.to_ne_bytes());
                    }
                    _ => std::thread::yield_now(),
                }
            }
        });
        let result = crate::timing::each(count, |n| {
            asked.store(n + 1, Ordering::Release);
            let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, for the time of the call.
            unsafe { libc::poll(&raw mut poll, 1, -1) };
            rustix::io::read(&event, &mut [0; 8])?;
            calls()
        });
        asked.store(stop, Ordering::Release);
        result
    })
}

fn call<T: Command>(iommufd: &File, mut value: T) -> Result<T> {
    let size = size_of::<T>() as u32;
    value.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
    ioctl(iommufd, T::REQUEST, value)
}

fn ioctl<T>(file: &File, request: u32, mut value: T) -> Result<T> {
    // SAFETY: the requests used here read and write one structure, which is `value`.
    match unsafe { libc::ioctl(file.as_raw_fd(), request.into(), &raw mut value) } {
        ..0 => Err(std::io::Error::last_os_error()).with_context(|| format!("request {request:#x}")),
        _ => Ok(value),
    }
}
