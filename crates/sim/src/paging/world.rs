// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that ask, programs that answer, and who may have answered what.

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::{FileId, Reply};
use device::{Asked, Endpoint, PageTicket};
use host::tree::Node;
use host::{Host, Lab};
use iommu::{Access, PageRequest, PageResponseCode};
use uapi::Errno;
use uapi::iommufd::{Command, FaultQueueAlloc, HwptAlloc, IoasAlloc};
use uapi::iommufd_events::{PageAnswer, PageFault};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd, DetachIommufdPt, PT_PASID};
use uapi::vfio::device as dev;
use zerocopy::{FromBytes as _, IntoBytes};

use super::Tally;
use super::op::Op;
use crate::client::{BASE, Client, Fd};
use crate::platform::{SimPlatform, SimStorage};
use crate::world::{Broken, Step};

const PARENT: &str = "/sys/bus/pci/devices/0000:01:00.0";
const LAB: &str = r#"
[[device]]
model = "dsa"
addr = "01:00.0"
driver = "idxd"
[[device]]
model = "dsa"
addr = "02:00.0"
[[device]]
model = "dsa"
parent = "01:00.0"
pasid = 100
[[device]]
model = "dsa"
parent = "01:00.0"
pasid = 101
"#;
/// How answers are told apart, by seed.
const MODES: [&str; 5] = [
    "",
    "[fault]\ntimeout_ms = 20\n",
    "[fault]\ncookies = \"lowest-free\"\n",
    "[fault]\ntransport = \"9bit\"\n",
    "[fault]\ntransport = \"9bit\"\nquarantine = true\n",
];
const PAGE: u64 = 4096;
const RECORDS: u64 = BASE + 0x1000;
const RECORD: usize = size_of::<PageFault>();

pub(super) struct World {
    host: Host,
    platform: Arc<SimPlatform>,
    clients: Vec<Client>,
    devices: Vec<Device>,
    /// Requests so far: each asks for a page that no other does.
    pages: u64,
    /// What was read under a cookie of a queue: pages, the latest last.
    read: BTreeMap<(FileId, u32), Vec<u64>>,
    /// Answers have a deadline.
    deadline: bool,
    /// No cookie is given twice.
    unique: bool,
    processes: u64,
    pub(super) tally: Tally,
}

struct Device {
    node: u32,
    endpoint: Arc<Endpoint>,
    user: Option<User>,
    /// What it waits for: the page, and whether somebody took the request.
    asked: BTreeMap<PageTicket, Request>,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    page: u64,
    taken: bool,
}

struct User {
    client: usize,
    iommufd: FileId,
    device: FileId,
    queues: Vec<Queue>,
    /// PASIDs that are attached, 0 for none.
    attached: Vec<u32>,
}

struct Queue {
    file: FileId,
    hwpt: u32,
    /// Cookies read, the latest last.
    cookies: Vec<u32>,
}

/// Why devices may have answers now.
enum Cause {
    /// A program's answer was accepted: queue, cookie, code.
    Answer(FileId, u32, PageResponseCode),
    /// What a device's user did concerns its requests.
    User(usize),
    /// Time has passed.
    Time,
    Nothing,
}

impl World {
    pub(super) fn new(seed: u64) -> Step<World> {
        let broken = |e: &dyn std::fmt::Display| Broken(format!("the lab cannot be built: {e}"));
        let mode = (seed % 5) as usize;
        let text = format!("{}{LAB}", MODES[mode]);
        let lab = Lab::parse("sim", &text).map_err(|e| broken(&e))?;
        let platform = SimPlatform::new(seed);
        let host = Host::new(lab, Arc::clone(&platform) as _, Box::new(SimStorage)).map_err(|e| broken(&e))?;
        // In address order: the function with the parts is the first.
        let device = |(n, endpoint): (usize, &Arc<Endpoint>)| Device {
            node: n as u32,
            endpoint: Arc::clone(endpoint),
            user: None,
            asked: BTreeMap::new(),
        };
        let devices = host.endpoints().skip(1).enumerate().map(device).collect();
        Ok(World {
            host,
            platform,
            clients: vec![Client::new(1), Client::new(2)],
            devices,
            pages: 0,
            read: BTreeMap::new(),
            deadline: mode == 1,
            unique: mode < 2,
            processes: 2,
            tally: Tally::default(),
        })
    }

    /// Makes the observer believe that each cookie was another's.
    #[cfg(test)]
    pub(super) fn mix_up(&mut self) {
        self.read.values_mut().flatten().for_each(|page| *page += 1);
    }

    /// Does one step and checks every law.
    pub(super) fn step(&mut self, op: &Op) -> Step {
        // Whatever is refused: what is open stays open.
        let cause = self.act(op)?.unwrap_or(Cause::Nothing);
        self.check(&cause)
    }

    /// Everybody goes; nothing may be left, and everything can be had again.
    pub(super) fn finish(&mut self) -> Step {
        (0..2).try_for_each(|client| self.step(&Op::Kill { client }))?;
        let open = self.host.open_files();
        if open != 0 {
            return Err(Broken(format!("{open} files are open after the last close")));
        }
        for (n, device) in self.devices.iter().enumerate() {
            let out = device.endpoint.page_requests.outstanding();
            if out != 0 || !device.asked.is_empty() {
                return Err(Broken(format!("{out} requests of device {n} never got an answer: {:?}", device.asked)));
            }
        }
        for device in 0..3 {
            self.open(0, device).ok_or_else(|| Broken(format!("device {device} cannot be had again")))?;
            for pasid in 1..4 {
                if self.attach(device, pasid, 0).is_none() {
                    return Err(Broken(format!("nobody has PASID {pasid}, and device {device} cannot attach it")));
                }
            }
            self.step(&Op::Close { device: device as u8 })?;
        }
        self.step(&Op::Kill { client: 0 })
    }

    fn act(&mut self, op: &Op) -> Step<Option<Cause>> {
        let at = |device: u8| usize::from(device) % 3;
        Ok(match *op {
            Op::Open { client, device } => self
                .open(client.into(), at(device))
                .and_then(|()| (0..2).filter_map(|pasid| self.attach(at(device), pasid, pasid as usize)).last()),
            Op::Ask { device, pasid } => {
                self.ask(at(device), pasid.into());
                None
            }
            Op::Break { device, pasid, what } => {
                self.break_rules(at(device), pasid.into(), what);
                None
            }
            Op::Read { device, queue, records } => self.read(at(device), queue, records).map(|()| Cause::Nothing),
            Op::Answer { device, queue, back, invalid } => {
                let queue = self.queue(at(device), queue).map(|queue| (queue.file, nth_back(&queue.cookies, back)));
                match queue {
                    Some((file, Some(cookie))) => self.answer(at(device), file, cookie, invalid.into())?,
                    _ => None,
                }
            }
            Op::Misdirect { device, queue, other, back } => {
                let to = self.queue(at(device), queue).map(|queue| queue.file);
                let from = self.queue(at(other), other / 3);
                match (to, from.and_then(|queue| nth_back(&queue.cookies, back))) {
                    (Some(file), Some(cookie)) => self.answer(at(device), file, cookie, 1)?,
                    _ => None,
                }
            }
            Op::Wild { device, queue, cookie, code } => match self.queue(at(device), queue).map(|queue| queue.file) {
                Some(file) => self.answer(at(device), file, cookie, code.into())?,
                None => None,
            },
            Op::Attach { device, pasid, queue } => self.attach(at(device), pasid.into(), queue.into()),
            Op::Detach { device, pasid } => self.detach(at(device), pasid.into()),
            Op::Reset { device } => self.reset(at(device)),
            Op::ResetParent => {
                let done = self.host.store(&format!("{PARENT}/reset"), b"1");
                done.map_err(|errno| Broken(format!("the parent cannot be reset: {errno:?}")))?;
                [1, 2].into_iter().for_each(|part| self.forget(part));
                None
            }
            Op::Close { device } => self.close(at(device)),
            Op::CloseQueue { device, queue } => {
                let queues = self.devices[at(device)].user.as_mut().map(|user| &mut user.queues);
                let file = queues.filter(|queues| usize::from(queue) < queues.len());
                if let Some(queue) = file.map(|queues| queues.remove(queue.into())) {
                    self.close_file(queue.file);
                }
                None
            }
            Op::Kill { client } => {
                self.kill(client.into())?;
                None
            }
            Op::Advance { ms } => {
                self.platform.advance(u64::from(ms) * 1_000_000);
                self.host.elapse();
                Some(Cause::Time)
            }
        })
    }

    // What devices do.

    fn ask(&mut self, device: usize, pasid: u32) {
        self.pages += 1;
        let page = self.pages;
        let device = &mut self.devices[device];
        let pri = &device.endpoint.page_requests;
        let named = Some(pasid).filter(|pasid| *pasid != 0);
        if let Asked::Sent(ticket) = pri.ask(named, Access::Read, page * PAGE) {
            self.tally.asked += 1;
            let taken = device.user.as_ref().is_some_and(|user| user.attached.contains(&pasid));
            device.asked.insert(ticket, Request { page, taken });
        }
    }

    /// Nothing of this has an answer that the device waits for.
    fn break_rules(&mut self, device: usize, pasid: u32, what: u8) {
        let pri = &self.devices[device].endpoint.page_requests;
        let pasid = Some(pasid).filter(|pasid| *pasid != 0);
        let group = u32::from(what >> 3);
        let request = PageRequest { pasid, group, last: true, perm: 1, ..PageRequest::default() };
        match what % 6 {
            0 => pri.send(request),
            1 => pri.send(PageRequest { last: false, ..request }),
            2 => (0..8).for_each(|group| pri.send(PageRequest { group, ..request })),
            3 => pri.stop(pasid.unwrap_or(1)),
            4 => pri.send(PageRequest { pasid: Some(100 + u32::from(what & 8 != 0)), ..request }),
            _ => pri.send(PageRequest { group: 512 + group, perm: 5, addr: 1 << 60, ..request }),
        }
    }

    /// It was reset, and waits for nothing.
    fn forget(&mut self, device: usize) {
        self.tally.forgotten += self.devices[device].asked.len();
        self.devices[device].asked.clear();
    }

    // What programs do.

    fn open(&mut self, client: usize, device: usize) -> Option<()> {
        if self.devices[device].user.is_some() {
            return None;
        }
        let client = client % self.clients.len();
        let caller = &self.clients[client];
        let iommufd = self.host.open(Node::Iommufd, caller).ok()?;
        let fd = caller.install(Fd::File(iommufd));
        let node = self.host.open(Node::VfioCdev(self.devices[device].node), caller).ok()?;
        caller.install(Fd::File(node));
        let bind = BindIommufd { argsz: 16, iommufd: fd, ..BindIommufd::default() };
        caller.set(BASE, bind.as_bytes());
        self.host.ioctl(node, dev::BIND_IOMMUFD, BASE, caller).ok()?;
        let mut id = [0; 4];
        caller.get(BASE + 12, &mut id);
        let dev_id = u32::from_le_bytes(id);
        let ioas = self.call(client, iommufd, IoasAlloc::default())?.out_ioas_id;
        let mut queues = Vec::new();
        for _ in 0..2 {
            let made = self.call(client, iommufd, FaultQueueAlloc::default())?;
            let file = self.clients[client].file_id(made.out_fault_fd.cast_signed())?;
            let base = HwptAlloc { dev_id, pt_id: ioas, fault_id: made.out_fault_id, ..HwptAlloc::default() };
            let hwpt = self.call(client, iommufd, HwptAlloc { flags: 4 | 8, ..base })?.out_hwpt_id;
            queues.push(Queue { file, hwpt, cookies: Vec::new() });
        }
        self.devices[device].user = Some(User { client, iommufd, device: node, queues, attached: Vec::new() });
        Some(())
    }

    fn call<T: Command>(&mut self, client: usize, iommufd: FileId, command: T) -> Option<T> {
        let mut bytes = command.as_bytes().to_vec();
        let size = (bytes.len() as u32).to_le_bytes();
        bytes.get_mut(..4)?.copy_from_slice(&size);
        let caller = &self.clients[client];
        caller.set(BASE, &bytes);
        self.host.ioctl(iommufd, T::REQUEST, BASE, caller).ok()?;
        caller.get(BASE, &mut bytes);
        T::read_from_bytes(&bytes).ok()
    }

    fn queue(&self, device: usize, queue: u8) -> Option<&Queue> {
        self.devices[device].user.as_ref()?.queues.get(usize::from(queue))
    }

    fn read(&mut self, device: usize, queue: u8, records: u8) -> Option<()> {
        let user = self.devices[device].user.as_mut()?;
        let queue = user.queues.get_mut(usize::from(queue))?;
        let caller = &self.clients[user.client];
        let len = u64::from(records) * RECORD as u64;
        let Ok(Reply::Value(done)) = self.host.read(queue.file, 0, RECORDS, len, caller) else { return None };
        let mut bytes = vec![0; done as usize];
        caller.get(RECORDS, &mut bytes);
        for record in bytes.chunks(RECORD).filter_map(|record| PageFault::read_from_bytes(record).ok()) {
            queue.cookies.push(record.cookie);
            self.read.entry((queue.file, record.cookie)).or_default().push(record.addr / PAGE);
        }
        Some(())
    }

    fn answer(&mut self, device: usize, file: FileId, cookie: u32, code: u32) -> Step<Option<Cause>> {
        let Some(user) = &self.devices[device].user else { return Ok(None) };
        let caller = &self.clients[user.client];
        caller.set(BASE, PageAnswer { cookie, code }.as_bytes());
        match self.host.write(file, 0, BASE, 8, caller) {
            Ok(_) if code > 1 => Err(Broken(format!("code {code} was accepted"))),
            Ok(_) => {
                let code = if code == 0 { PageResponseCode::Success } else { PageResponseCode::Invalid };
                Ok(Some(Cause::Answer(file, cookie, code)))
            }
            Err(Errno::EINVAL) => {
                self.tally.refused += 1;
                Ok(None)
            }
            Err(errno) => Err(Broken(format!("an answer is {errno:?}"))),
        }
    }

    fn attach(&mut self, device: usize, pasid: u32, queue: usize) -> Option<Cause> {
        let user = self.devices[device].user.as_mut()?;
        let pt_id = user.queues.get(queue)?.hwpt;
        let caller = &self.clients[user.client];
        let (argsz, flags) = if pasid == 0 { (12, 0) } else { (16, PT_PASID) };
        caller.set(BASE, AttachIommufdPt { argsz, flags, pt_id, pasid }.as_bytes());
        self.host.ioctl(user.device, dev::ATTACH_IOMMUFD_PT, BASE, caller).ok()?;
        if !user.attached.contains(&pasid) {
            user.attached.push(pasid);
        }
        Some(Cause::User(device))
    }

    fn detach(&mut self, device: usize, pasid: u32) -> Option<Cause> {
        let user = self.devices[device].user.as_mut()?;
        let caller = &self.clients[user.client];
        let (argsz, flags) = if pasid == 0 { (8, 0) } else { (12, PT_PASID) };
        caller.set(BASE, DetachIommufdPt { argsz, flags, pasid }.as_bytes());
        self.host.ioctl(user.device, dev::DETACH_IOMMUFD_PT, BASE, caller).ok()?;
        user.attached.retain(|attached| *attached != pasid);
        Some(Cause::User(device))
    }

    fn reset(&mut self, device: usize) -> Option<Cause> {
        let user = self.devices[device].user.as_ref()?;
        self.host.ioctl(user.device, dev::RESET, 0, &self.clients[user.client]).ok()?;
        self.forget(device);
        None
    }

    /// Closes the device, with what else its user had opened for it. What is
    /// out is answered before the device is reset.
    fn close(&mut self, device: usize) -> Option<Cause> {
        let user = self.devices[device].user.take()?;
        self.close_file(user.device);
        for file in user.queues.into_iter().map(|queue| queue.file).chain([user.iommufd]) {
            self.close_file(file);
        }
        // Answered by the host or forgotten in the reset: which of the two is
        // the order's of closing.
        let answers = self.devices[device].endpoint.page_requests.take_answers();
        self.tally.by_host += answers.len();
        self.forget(device);
        Some(Cause::User(device))
    }

    fn close_file(&mut self, file: FileId) {
        for client in &self.clients {
            let fd = client.open().into_iter().find(|fd| client.file_id(*fd) == Some(file));
            if let Some(fd) = fd {
                client.remove(fd);
            }
        }
        self.host.release(file);
    }

    fn kill(&mut self, client: usize) -> Step {
        let client = client % self.clients.len();
        for device in 0..self.devices.len() {
            if self.devices[device].user.as_ref().is_some_and(|user| user.client == client) {
                let cause = self.close(device).unwrap_or(Cause::Nothing);
                self.check(&cause)?;
            }
        }
        // What was opened for a device that could not be bound.
        for fd in self.clients[client].open() {
            if let Some(Fd::File(file)) = self.clients[client].remove(fd) {
                self.host.release(file);
            }
        }
        self.processes += 1;
        self.clients[client] = Client::new(self.processes);
        Ok(())
    }

    // The laws.

    fn check(&mut self, cause: &Cause) -> Step {
        let mut completed = 0;
        for n in 0..self.devices.len() {
            for (ticket, code) in self.devices[n].endpoint.page_requests.take_answers() {
                let Some(request) = self.devices[n].asked.remove(&ticket) else {
                    return Err(Broken(format!("device {n}: a second answer, or one to nothing: {ticket:?} {code:?}")));
                };
                if let Cause::Answer(file, cookie, given) = cause
                    && self.read.get(&(*file, *cookie)).is_some_and(|pages| pages.contains(&request.page))
                {
                    if code != *given {
                        return Err(Broken(format!("device {n}: {code:?} where {given:?} was answered")));
                    }
                    completed += 1;
                    self.tally.answered += 1;
                    continue;
                }
                let may = match cause {
                    Cause::User(device) => *device == n,
                    Cause::Time => self.deadline,
                    _ => false,
                };
                if code != PageResponseCode::Invalid || (request.taken && !may) {
                    return Err(Broken(format!("device {n}: {request:?} was answered {code:?} for no reason")));
                }
                self.tally.by_host += 1;
            }
        }
        if completed > 1 {
            return Err(Broken(format!("one answer for {completed} requests")));
        }
        // Where no cookie is given twice, an answer that is accepted is for one request.
        if let Cause::Answer(file, cookie, _) = cause
            && self.unique
            && completed == 0
            && let Some(page) = self.read.get(&(*file, *cookie)).and_then(|pages| pages.last())
            && self.devices.iter().any(|device| device.asked.values().any(|request| request.page == *page))
        {
            return Err(Broken(format!("cookie {cookie} was answered, and the device has not heard of it")));
        }
        Ok(())
    }
}

fn nth_back(cookies: &[u32], back: u8) -> Option<u32> {
    cookies.iter().rev().nth(usize::from(back).checked_rem(cookies.len())?).copied()
}
