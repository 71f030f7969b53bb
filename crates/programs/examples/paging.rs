// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! On-demand paging for a device: an accelerator fills a buffer of which
//! nothing is mapped for it. Where it finds no page it asks; this program reads
//! that from a fault queue of `/dev/iommu`, maps, and answers.
//!
//! ```console
//! $ vfuse run --device dsa,addr=01:00.0 -- paging
//! $ vfuse run --device dsa,addr=01:00.0 -- paging --size 64M --map 4K --answer twice
//! ```
//! `--device` names another function than 0000:01:00.0, or the UUID of a mediated
//! device: several programs can then use one accelerator, each with PASIDs of
//! its own. `--answer` says how well it answers: `right`; `wrong` (every eighth page is
//! refused), `late` (after the host has answered), `twice`, `never` (until the
//! host does). `--serve` says who does: the program itself; `threads`, two at the
//! same descriptor; `child`, a forked process that inherited it; `passed`, one
//! that got it over a socket. The parent has closed its own then.
//! What was refused is submitted again. However it answers, each
//! request gets one answer, and the buffer is filled in the end.
//!
//! `--drain finish` drains the device's page requests in the middle of that and
//! stops it for a moment, as one would who moves it; `--drain cancel` does not
//! answer meanwhile and gives up (an extension, docs/extensions.md).
#![allow(unsafe_code)] // system calls and mapped memory of a client

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use models::dsa::spec::{self, Descriptor, command, flag, opcode, wqcfg};
use uapi::iommufd::{Command, FaultQueueAlloc, HwptAlloc, IoasAlloc, IoasMap};
use uapi::iommufd_events::{FAULT_PASID_VALID, PageAnswer, PageFault};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd};
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, FEATURE, GET_REGION_INFO, RegionInfo, feature};
use uapi::vfio::draining::DRAIN;
use zerocopy::{FromBytes as _, IntoBytes as _};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BDF: &str = "0000:01:00.0";
/// IOVA of the buffer.
const BUFFER: u64 = 1 << 40;
/// IOVA of the completion records.
const RECORDS: u64 = 1 << 20;
/// Descriptors under way.
const DEPTH: usize = 32;
/// Bytes of a descriptor.
const PIECE: u64 = 4 << 20;
const PATTERN: u64 = 0x0123_4567_89ab_cdef;
const PAGE: u64 = 4096;
const FAULT_ID_VALID: u32 = 4;
/// The operation of a feature.
const SET: u32 = 1 << 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Right,
    Wrong,
    Late,
    Twice,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Program,
    Threads,
    Child,
    Passed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    No,
    Finish,
    Cancel,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("paging: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (mut size, mut map, mut manner) = (1 << 30, 2 << 20, Manner::Right);
    let (mut device, mut who, mut drain) = (BDF.to_owned(), Who::Program, Drain::No);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or("an option has a value")?;
        match word.as_str() {
            "--device" => device = value,
            "--size" => size = bytes(&value)?.next_multiple_of(PIECE),
            "--map" => map = bytes(&value)?.next_multiple_of(PAGE),
            "--answer" => {
                manner = match value.as_str() {
                    "right" => Manner::Right,
                    "wrong" => Manner::Wrong,
                    "late" => Manner::Late,
                    "twice" => Manner::Twice,
                    "never" => Manner::Never,
                    _ => return Err("--answer is right, wrong, late, twice or never".into()),
                }
            }
            "--serve" => {
                who = match value.as_str() {
                    "program" => Who::Program,
                    "threads" => Who::Threads,
                    "child" => Who::Child,
                    "passed" => Who::Passed,
                    _ => return Err("--serve is program, threads, child or passed".into()),
                }
            }
            "--drain" => {
                drain = match value.as_str() {
                    "finish" => Drain::Finish,
                    "cancel" => Drain::Cancel,
                    _ => return Err("--drain is finish or cancel".into()),
                }
            }
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    let mut paging = Paging::new(&device, size, map, manner)?;
    paging.drain = drain;
    match who {
        Who::Program => paging.fill()?,
        Who::Threads => paging.fill_with_threads()?,
        Who::Child | Who::Passed => paging.fill_with_child(who)?,
    }
    paging.verify()?;
    let refused = paging.refused;
    let Counts { requests, answers, dropped, pasid } = paging.counts;
    println!("{} MiB filled and verified; {requests} page requests, {answers} answered", size >> 20);
    println!("{dropped} answers were not accepted, {refused} descriptors ended early and were submitted again");
    if let Some(pasid) = pasid {
        println!("page requests had PASID {pasid}");
    }
    Ok(())
}

fn bytes(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    Ok(digits.parse::<u64>()? << shift)
}

/// Memory shared with the device.
struct Memory {
    at: *mut u8,
    len: usize,
}

impl Memory {
    fn new(file: &File, offset: u64, len: u64) -> Result<Memory> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping wherever there is room.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len as usize, prot, libc::MAP_SHARED, file.as_raw_fd(), offset as i64)
        };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(Memory { at: at.cast(), len: len as usize })
    }

    /// Memory of its own.
    fn anonymous(len: u64) -> Result<Memory> {
        // SAFETY: the name is a string with its NUL.
        let fd = unsafe { libc::memfd_create(c"paging".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the call has just made it for us alone.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len)?;
        Memory::new(&file, 0, len)
    }

    fn long(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len);
        // SAFETY: inside the mapping, which is never unmapped, and aligned.
        unsafe { AtomicU64::from_ptr(self.at.add(offset).cast()) }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < self.len);
        // SAFETY: inside the mapping, which is never unmapped.
        unsafe { AtomicU8::from_ptr(self.at.add(offset)) }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    answers: u64,
    /// Answers that were not accepted.
    dropped: u64,
    /// The PASID of a mediated device's requests.
    pasid: Option<u32>,
}

/// Who serves page requests, and what that takes.
struct Pager {
    iommufd: File,
    device: File,
    faults: File,
    ioas: u32,
    /// Two HWPTs with the queue, to go from one to the other.
    hwpts: [u32; 2],
    /// Where the buffer is in memory, and its length.
    buffer: (u64, u64),
    map: u64,
    manner: Manner,
    counts: Counts,
}

struct Paging {
    /// `None`: somebody else serves.
    pager: Option<Pager>,
    /// Whether it drains, once.
    drain: Drain,
    device: File,
    /// Where the registers are in the device's file.
    registers: u64,
    portal: Memory,
    place: usize,
    buffer: Memory,
    records: Memory,
    /// What each slot has to do: IOVA and length.
    busy: BTreeMap<usize, (u64, u64)>,
    left: Vec<(u64, u64)>,
    counts: Counts,
    /// Descriptors that ended early.
    refused: u64,
}

impl Paging {
    fn new(device: &str, size: u64, map: u64, manner: Manner) -> Result<Paging> {
        let open = |path: &str| {
            OpenOptions::new().read(true).write(true).open(path).map_err(|error| format!("{path}: {error}"))
        };
        let bus = if device.len() == 36 { "mdev" } else { "pci" };
        let nodes = std::fs::read_dir(format!("/sys/bus/{bus}/devices/{device}/vfio-dev"));
        let node = nodes.map_err(|error| format!("{device}: {error}"))?.next().ok_or("no node")??;
        let device = open(&format!("/dev/vfio/devices/{}", node.file_name().to_string_lossy()))?;
        let iommufd = open("/dev/iommu")?;
        let bind = BindIommufd { argsz: 16, iommufd: iommufd.as_raw_fd(), ..BindIommufd::default() };
        let dev_id = ioctl(&device, BIND_IOMMUFD, bind)?.out_devid;
        let ioas = call(&iommufd, IoasAlloc::default())?.out_ioas_id;
        let queue = call(&iommufd, FaultQueueAlloc::default())?;
        // SAFETY: the call has just made it for us alone.
        let faults = unsafe { File::from_raw_fd(queue.out_fault_fd.cast_signed()) };
        let hwpt = || {
            let base = HwptAlloc { dev_id, pt_id: ioas, flags: FAULT_ID_VALID, ..HwptAlloc::default() };
            Ok::<u32, Box<dyn std::error::Error>>(
                call(&iommufd, HwptAlloc { fault_id: queue.out_fault_id, ..base })?.out_hwpt_id,
            )
        };
        let hwpts = [hwpt()?, hwpt()?];
        let region = |index| -> Result<u64> {
            let info = RegionInfo { argsz: size_of::<RegionInfo>() as u32, index, ..RegionInfo::default() };
            Ok(ioctl(&device, GET_REGION_INFO, info)?.offset)
        };
        let (registers, portals, config) = (region(0)?, region(2)?, region(7)?);
        // Memory and bus mastering.
        device.write_all_at(&6_u16.to_le_bytes(), config + 4)?;
        let portal = Memory::new(&device, portals, PAGE)?;
        let (buffer, records) = (Memory::anonymous(size)?, Memory::anonymous(PAGE)?);
        let left = (0..size / PIECE).rev().map(|n| (BUFFER + n * PIECE, PIECE)).collect();
        let (busy, counts) = (BTreeMap::new(), Counts::default());
        let mut pager = Pager {
            iommufd,
            device: device.try_clone()?,
            faults,
            ioas,
            hwpts,
            buffer: (buffer.at as u64, size),
            map,
            manner,
            counts,
        };
        pager.map(RECORDS, records.at as u64, PAGE)?;
        pager.attach()?;
        let pager = Some(pager);
        let paging = Paging {
            pager,
            drain: Drain::No,
            device,
            registers,
            portal,
            place: 0,
            buffer,
            records,
            busy,
            left,
            counts,
            refused: 0,
        };
        paging.enable()?;
        Ok(paging)
    }

    /// A queue whose descriptors may wait for pages.
    fn enable(&self) -> Result<()> {
        let mode = wqcfg::DEDICATED | wqcfg::BLOCK_ON_FAULT | 1 << 4;
        for (word, value) in [(wqcfg::SIZE, DEPTH as u32), (wqcfg::MODE, mode), (wqcfg::LIMITS, 31 | 10 << 5)] {
            self.register(spec::WQCFG + 4 * word as u64, value)?;
        }
        self.register(spec::GRPCFG, 1)?;
        self.register(spec::GRPCFG + spec::GROUP_ENGINES, 1)?;
        for number in [command::ENABLE_DEVICE, command::ENABLE_QUEUE] {
            self.register(spec::CMD, number << 20)?;
            let mut status = [0; 4];
            self.device.read_exact_at(&mut status, self.registers + spec::CMDSTS)?;
            if status != [0; 4] {
                return Err(format!("command {number}: {status:x?}").into());
            }
        }
        Ok(())
    }

    fn register(&self, offset: u64, value: u32) -> Result<()> {
        Ok(self.device.write_all_at(&value.to_le_bytes(), self.registers + offset)?)
    }

    /// Has the device fill the buffer.
    fn fill(&mut self) -> Result<()> {
        while !self.left.is_empty() || !self.busy.is_empty() {
            for slot in 0..DEPTH {
                if !self.busy.contains_key(&slot)
                    && let Some(work) = self.left.pop()
                {
                    self.submit(slot, work);
                }
            }
            match &mut self.pager {
                Some(pager) if pager.counts.requests >= 8 && self.drain != Drain::No => {
                    let drain = std::mem::replace(&mut self.drain, Drain::No);
                    pager.drain(drain == Drain::Cancel)?;
                }
                Some(pager) => pager.serve()?,
                None => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
            self.reap()?;
        }
        if let Some(pager) = &self.pager {
            self.counts.add(pager.counts);
        }
        Ok(())
    }

    /// Two threads read and answer beside one another; a third opens and closes
    /// descriptors of the same file.
    fn fill_with_threads(&mut self) -> Result<()> {
        let pager = self.pager.take().ok_or("somebody serves already")?;
        pager.check_refusals()?;
        let pagers = [pager.another()?, pager.another()?];
        let done = AtomicBool::new(false);
        let serve = |mut pager: Pager| {
            while !done.load(Ordering::Acquire) {
                pager.serve().map_err(|error| error.to_string())?;
            }
            Ok::<Counts, String>(pager.counts)
        };
        let counts = std::thread::scope(|scope| -> Result<Vec<Counts>> {
            let serve = &serve;
            let threads = pagers.map(|pager| scope.spawn(move || serve(pager)));
            let close = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    drop(pager.faults.try_clone());
                }
            });
            let filled = self.fill();
            done.store(true, Ordering::Release);
            close.join().map_err(|_| "a thread has died")?;
            let counts = threads.map(|thread| thread.join().map_err(|_| "a thread has died".to_owned()).flatten());
            filled?;
            Ok(counts.into_iter().collect::<std::result::Result<_, String>>()?)
        })?;
        counts.into_iter().for_each(|counts| self.counts.add(counts));
        Ok(())
    }

    /// A child serves, with the descriptor that it inherited or was sent.
    fn fill_with_child(&mut self, who: Who) -> Result<()> {
        let mut pager = self.pager.take().ok_or("somebody serves already")?;
        pager.check_refusals()?;
        let (mut ours, mut theirs) = UnixStream::pair()?;
        // SAFETY: this process has one thread.
        if unsafe { libc::fork() } == 0 {
            drop(ours);
            let served = serve_as_child(&mut pager, &mut theirs, who);
            if let Err(error) = &served {
                eprintln!("paging: {error}");
            }
            std::process::exit(served.is_err().into());
        }
        drop(theirs);
        if who == Who::Passed {
            send_descriptor(&ours, &pager.faults)?;
        }
        drop(pager);
        self.fill()?;
        ours.write_all(&[0])?;
        let mut counts = [0; 24];
        ours.read_exact(&mut counts)?;
        let number =
            |n: usize| counts.iter().skip(8 * n).take(8).rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        self.counts.add(Counts { requests: number(0), answers: number(1), dropped: number(2), pasid: None });
        Ok(())
    }

    fn submit(&mut self, slot: usize, (destination, len): (u64, u64)) {
        self.records.byte(32 * slot).store(0, Ordering::Release);
        let flags = flag::RECORD | flag::REQUEST_RECORD | flag::BLOCK_ON_FAULT;
        let descriptor = Descriptor {
            completion: RECORDS + 32 * slot as u64,
            source: PATTERN,
            destination,
            size: len as u32,
            ..Descriptor::new(opcode::FILL, flags)
        };
        // A place of the portal is free when its first eight bytes are zero,
        // which are stored last.
        let at = self.place % 64 * spec::DESCRIPTOR_BYTES;
        self.place += 1;
        while self.portal.long(at).load(Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        for (n, long) in descriptor.as_bytes().chunks_exact(8).enumerate().rev() {
            let value = long.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            self.portal.long(at + 8 * n).store(value, Ordering::Release);
        }
        self.busy.insert(slot, (destination, len));
    }

    /// Looks for descriptors that have ended; what is left of one that ended
    /// early is submitted again.
    fn reap(&mut self) -> Result<()> {
        for slot in 0..DEPTH {
            let Some((at, len)) = self.busy.get(&slot).copied() else { continue };
            let status = self.records.byte(32 * slot).load(Ordering::Acquire) & 0x7f;
            let done = self.records.long(32 * slot).load(Ordering::Acquire) >> 32;
            match status {
                0 => continue,
                1 => {}
                3 => {
                    self.refused += 1;
                    self.left.push((at + done, len - done));
                }
                other => return Err(format!("a descriptor ended with status {other:#x}").into()),
            }
            self.busy.remove(&slot);
        }
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        let wrong = (0..self.buffer.len).step_by(8).find(|at| self.buffer.long(*at).load(Ordering::Relaxed) != PATTERN);
        wrong.map_or(Ok(()), |at| Err(format!("the buffer is wrong at {at:#x}").into()))
    }
}

impl Pager {
    /// The same for another thread: a descriptor of the same file.
    fn another(&self) -> Result<Pager> {
        let (iommufd, device, faults) = (self.iommufd.try_clone()?, self.device.try_clone()?, self.faults.try_clone()?);
        Ok(Pager { iommufd, device, faults, counts: Counts::default(), ..*self })
    }

    /// Attaches to one HWPT, or from one to the other: the host answers what is
    /// outstanding.
    fn attach(&mut self) -> Result<()> {
        let attach = AttachIommufdPt { argsz: 12, pt_id: self.hwpts[0], ..AttachIommufdPt::default() };
        ioctl(&self.device, ATTACH_IOMMUFD_PT, attach)?;
        self.hwpts.swap(0, 1);
        Ok(())
    }

    fn map(&self, iova: u64, user_va: u64, length: u64) -> Result<()> {
        let map = IoasMap { flags: 7, ioas_id: self.ioas, user_va, length, iova, ..IoasMap::default() };
        match call(&self.iommufd, map) {
            // Another request has asked for the same.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    /// Serves the page requests that are there, or come within a millisecond.
    fn serve(&mut self) -> Result<()> {
        let mut poll = libc::pollfd { fd: self.faults.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, for the time of the call.
        unsafe { libc::poll(&raw mut poll, 1, 1) };
        if poll.revents & libc::POLLIN == 0 {
            return Ok(());
        }
        let mut buffer = [0; 40 * 64];
        let len = (&self.faults).read(&mut buffer)?;
        let records: Vec<PageFault> =
            buffer[..len].chunks(40).filter_map(|record| PageFault::read_from_bytes(record).ok()).collect();
        self.counts.requests += records.len() as u64;
        let pasid = records.iter().find(|record| record.flags & FAULT_PASID_VALID != 0).map(|record| record.pasid);
        self.counts.pasid = self.counts.pasid.or(pasid);
        if matches!(self.manner, Manner::Late | Manner::Never) {
            // The device leaves: the host answers everything INVALID.
            self.attach()?;
        }
        for record in records {
            let first = record.addr & !(self.map - 1);
            let offset = first - BUFFER;
            let len = self.map.min(self.buffer.1 - offset);
            let refuse = self.manner == Manner::Wrong && self.counts.answers % 8 == 7;
            if !refuse {
                self.map(first, self.buffer.0 + offset, len)?;
            }
            if self.manner == Manner::Never {
                continue;
            }
            self.answer(record.cookie, refuse.into());
            if self.manner == Manner::Twice {
                self.answer(record.cookie, 1);
            }
        }
        Ok(())
    }

    fn answer(&mut self, cookie: u32, code: u32) {
        match (&self.faults).write_all(PageAnswer { cookie, code }.as_bytes()) {
            Ok(()) => self.counts.answers += 1,
            Err(_) => self.counts.dropped += 1,
        }
    }

    /// What a fault queue's file says to wrong sizes and places.
    fn check_refusals(&self) -> Result<()> {
        let mut bytes = [0; 80];
        let espipe = |result: std::io::Result<usize>| result.err().and_then(|e| e.raw_os_error()) == Some(libc::ESPIPE);
        let refused = espipe((&self.faults).read(&mut bytes[..39]))
            && espipe((&self.faults).write(&bytes[..7]))
            && espipe(self.faults.read_at(&mut bytes, 40));
        let empty = (&self.faults).read(&mut bytes[..0])?;
        if refused && empty == 0 { Ok(()) } else { Err("a wrong size was accepted".into()) }
    }
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.requests += other.requests;
        self.answers += other.answers;
        self.dropped += other.dropped;
        self.pasid = self.pasid.or(other.pasid);
    }
}

fn serve_as_child(pager: &mut Pager, parent: &mut UnixStream, who: Who) -> Result<()> {
    if who == Who::Passed {
        // vfuse knows a queue by its descriptor's number, and gives that to
        // duplicates only (docs/extensions.md, differences).
        pager.faults = receive_descriptor(parent)?.try_clone()?;
    }
    parent.set_nonblocking(true)?;
    let mut end = [0];
    while parent.read(&mut end).is_err() {
        pager.serve()?;
    }
    let Counts { requests, answers, dropped, .. } = pager.counts;
    parent.set_nonblocking(false)?;
    Ok(parent.write_all([requests, answers, dropped].map(u64::to_le_bytes).as_flattened())?)
}

/// Room for a control message with one descriptor, aligned.
type Control = [u64; 4];

fn message<'a>(byte: &'a mut libc::iovec, control: &'a mut Control) -> libc::msghdr {
    // SAFETY: zeros are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (byte, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of::<Control>());
    message
}

fn send_descriptor(to: &UnixStream, file: &File) -> Result<()> {
    let (mut data, mut control) = ([1_u8], Control::default());
    let mut byte = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 1 };
    let mut message = message(&mut byte, &mut control);
    // SAFETY: the control buffer has room for a header and a descriptor.
    let sent = unsafe {
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        ((*header).cmsg_level, (*header).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(file.as_raw_fd());
        libc::sendmsg(to.as_raw_fd(), &raw const message, 0)
    };
    if sent == 1 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn receive_descriptor(from: &UnixStream) -> Result<File> {
    let (mut data, mut control) = ([0_u8], Control::default());
    let mut byte = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 1 };
    let mut message = message(&mut byte, &mut control);
    // SAFETY: the buffers are as large as the message says.
    if unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, 0) } != 1 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the kernel has filled the message in; the descriptor is ours.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Err("no descriptor came".into());
        }
        Ok(File::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()))
    }
}

fn call<T: Command>(iommufd: &File, mut value: T) -> std::io::Result<T> {
    let size = size_of::<T>() as u32;
    value.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
    ioctl(iommufd, T::REQUEST, value)
}

fn ioctl<T>(file: &File, request: u32, mut value: T) -> std::io::Result<T> {
    // SAFETY: the requests used here read and write one structure, which is `value`.
    match unsafe { libc::ioctl(file.as_raw_fd(), request.into(), &raw mut value) } {
        ..0 => Err(std::io::Error::last_os_error()),
        _ => Ok(value),
    }
}

impl Pager {
    /// A feature of the device with two words; what they are then.
    fn feature(&self, flags: u32, words: [u32; 2]) -> std::io::Result<[u32; 2]> {
        let [_, _, first, second] = ioctl(&self.device, FEATURE, [16, flags, words[0], words[1]])?;
        Ok([first, second])
    }

    /// SET of a state; the descriptor that came.
    fn set_state(&self, state: u32) -> std::io::Result<i32> {
        self.feature(SET | feature::MIG_DEVICE_STATE, [state, 0]).map(|[_, fd]| fd.cast_signed())
    }

    /// The way to STOP and back, or half of it.
    fn drain(&mut self, cancel: bool) -> Result<()> {
        const STOP: u32 = 1;
        const RUNNING: u32 = 2;
        const RUNNING_P2P: u32 = 5;
        self.feature(SET | DRAIN, [1, 0])?;
        // SAFETY: the call has just made it for us alone.
        let mut done = unsafe { File::from_raw_fd(self.set_state(RUNNING_P2P)?) };
        if cancel {
            // Nobody answers for a while.
            let early = readable(&done, 20);
            let stop = self.set_state(STOP).map_err(|error| error.raw_os_error());
            self.set_state(RUNNING)?;
            println!("given up: over {early}, STOP was {stop:?}");
            return Ok(());
        }
        while !readable(&done, 0) {
            self.serve()?;
        }
        let mut count = [0; 8];
        done.read_exact(&mut count)?;
        self.set_state(STOP)?;
        let more = readable(&self.faults, 0);
        self.set_state(RUNNING)?;
        println!("drained: counted {}, more requests: {more}", u64::from_ne_bytes(count));
        Ok(())
    }
}

/// Whether there is something to read, within so many milliseconds.
fn readable(file: &File, wait: i32) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, for the time of the call.
    unsafe { libc::poll(&raw mut poll, 1, wait) };
    poll.revents & libc::POLLIN != 0
}
