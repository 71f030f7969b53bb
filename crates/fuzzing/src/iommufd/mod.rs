// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! iommufd's address spaces: any sequence of calls, beside a model that does
//! the same in the plainest way. Each answer must be the model's, and so must
//! what programs pay; in the end nothing is left.

mod model;

use std::sync::Arc;

use arbitrary::Unstructured;
use caller::testing::{Client, MemFile, TestPlatform};
use caller::{Accounts, Caller, Capability, FileId, FileIds, Platform, Reply};
use iommufd::{Call, Iommufd, Options};
use uapi::Errno;
use uapi::iommufd::{
    Command, Destroy, HwptAlloc, IoasAlloc, IoasAllowIovas, IoasChangeProcess, IoasCopy, IoasIovaRanges, IoasMap,
    IoasMapFile, IoasUnmap, IovaRange, SetOption, VfioIoas, option, vfio_ioas,
};
use uapi::iommufd_test::{self as test, TestCmd, op};
use uapi::vfio::container::SET_IOMMU;
use uapi::vfio::type1::{DmaMap, DmaUnmap, MAP_DMA, UNMAP_DMA};
use zerocopy::IntoBytes;

use crate::wire::{Wire, operations, seed, wire};
use model::{Domain, Ioas, Model, PAGE, RAM, RAM_LEN, ROM, ROM_LEN};

wire! {
    /// What the programs may do. Objects and descriptors count modulo those
    /// that there are; one more names one that there is not.
    enum Op {
        Alloc {},
        Destroy { id: u8 },
        Map { ioas: u8, flags: u8, va: u16, length: u16, iova: u16 },
        MapFile { ioas: u8, flags: u8, start: u16, length: u16, iova: u16 },
        Copy { from: u8, to: u8, flags: u8, src: u16, length: u16, dst: u16 },
        Unmap { ioas: u8, iova: u16, length: u16 },
        UnmapAll { ioas: u8 },
        Ranges { ioas: u8, capacity: u8 },
        Allow { ioas: u8, count: u8, numbers: [u16; 6] },
        Reserve { ioas: u8, iova: u16, length: u16 },
        HugePages { ioas: u8, on: u8 },
        Mock { ioas: u8 },
        Hwpt { mock: u8, ioas: u8, huge: bool },
        Access { ioas: u8, pins: bool },
        Pin { access: u8, iova: u16, length: u16, write: bool },
        Unpin { access: u8, item: u8 },
        Read { access: u8, iova: u16, length: u16, slow: bool },
        Write { access: u8, iova: u16, length: u16, slow: bool },
        Move { access: u8, ioas: u8 },
        CloseAccess { access: u8 },
        ChangeProcess {},
        Switch { who: u8, privileged: bool, limit: u8 },
        Compat { ioas: u8, op: u8 },
        SetIommu { number: u8 },
        DmaMap { flags: u8, va: u16, length: u16, iova: u16 },
        DmaUnmap { all: bool, iova: u16, length: u16 },
        /// On a context of its own, of which the model knows nothing.
        Raw { nr: u8, size: u8, words: [u64; 4] },
    }
}

/// An IOVA: around the mock's aperture, the ends, and odd ones.
fn iova(n: u16) -> u64 {
    let small = u64::from(n & 0xfff);
    match n >> 12 {
        0..=9 => test::APERTURE_START + small % 256 * 1024,
        10 | 11 => small % 256 * 1024,
        12 => test::APERTURE_LAST - 16 * 1024 + 1 + small % 32 * 1024,
        13 => u64::MAX - small % 64 * 1024,
        14 => (u64::MAX - 0xffff) + small * 16,
        _ => small * 7,
    }
}

fn length(n: u16) -> u64 {
    let small = u64::from(n & 0x1fff);
    match n >> 13 {
        0..=4 => small % 32 * 1024,
        5 => small,
        6 => u64::MAX - small,
        _ => 1 << (small % 64),
    }
}

fn address(n: u16) -> u64 {
    let small = u64::from(n & 0x1fff);
    match n >> 13 {
        0..=3 => RAM + small % 256 * 1024,
        4 => ROM + small % 64 * 1024,
        5 => RAM + small,
        6 => small * 1024,
        _ => u64::MAX - small,
    }
}

struct World {
    iommufd: Iommufd,
    accounts: Accounts,
    files: FileIds,
    file: FileId,
    other: FileId,
    clients: [Client; 2],
    fds: [i32; 2],
    memory: Arc<MemFile>,
    who: usize,
    model: Model,
}

/// The body of the target `iommufd`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let mut world = World::new(settings & 1 != 0);
    for op in operations::<Op>(&mut u, 300) {
        world.step(&op);
        world.check_counts(&op);
    }
    world.finish();
}

impl World {
    fn new(vfio: bool) -> World {
        let accounts = Accounts::new(false);
        let options = Options { selftest: true, ..Options::default() };
        let platform = Arc::<TestPlatform>::default() as Arc<dyn Platform>;
        let mut iommufd = Iommufd::new(platform, options, accounts.clone());
        let mut files = FileIds::default();
        let (file, other) = (files.allocate(), files.allocate());
        iommufd.open(file, vfio);
        iommufd.open(other, false);
        let clients = [Client::new(1), Client::new(2)];
        let memory = MemFile::new(1, model::FILE_LEN);
        let fds = [0, 1].map(|who: usize| clients[who].mem_fd(&memory));
        for client in &clients {
            client.memory.map(RAM, RAM_LEN, true);
            client.memory.map(ROM, ROM_LEN, false);
        }
        let model = Model { process_mode: vfio, limit: [u64::MAX / PAGE; 2], ..Model::default() };
        World { iommufd, accounts, files, file, other, clients, fds, memory, who: 0, model }
    }

    fn ioctl(&mut self, request: u32, arg: u64) -> Result<Reply, Errno> {
        let mut call = Call { caller: &self.clients[self.who], files: &mut self.files };
        self.iommufd.ioctl(self.file, request, arg, &mut call)
    }

    /// Runs a command and returns its structure, whatever the answer.
    fn both<T: Command>(&mut self, command: T) -> (Result<(), Errno>, T) {
        let mut bytes = command.as_bytes().to_vec();
        let size = (bytes.len() as u32).to_ne_bytes();
        bytes[..4].copy_from_slice(&size);
        let arg = self.clients[self.who].put_bytes(&bytes);
        let done = self.ioctl(T::REQUEST, arg).map(|_| ());
        (done, self.clients[self.who].get(arg))
    }

    fn run<T: Command>(&mut self, command: T) -> Result<T, Errno> {
        let (done, reply) = self.both(command);
        done.map(|()| reply)
    }

    fn test(&mut self, op: u32, id: u32, set: impl FnOnce(&mut TestCmd)) -> Result<TestCmd, Errno> {
        let mut cmd = TestCmd { op, id, ..TestCmd::default() };
        set(&mut cmd);
        self.run(cmd)
    }

    /// The id of an IOAS, or of none.
    fn ioas(&self, n: u8) -> u32 {
        let count = self.model.ioases.len();
        self.model.ioases.keys().nth(usize::from(n) % (count + 1)).copied().unwrap_or(9999)
    }

    fn access(&self, n: u8) -> i32 {
        let count = self.model.accesses.len();
        self.model.accesses.keys().nth(usize::from(n) % (count + 1)).copied().unwrap_or(self.fds[0])
    }

    fn step(&mut self, op: &Op) {
        let (who, what) = (self.who, format!("{op:?}"));
        match *op {
            Op::Alloc {} => {
                let id = self.run(IoasAlloc::default()).expect("nothing is in the way").out_ioas_id;
                assert_eq!(id, self.model.next_id());
                self.model.ids.insert(id);
                self.model.ioases.insert(id, Ioas::default());
            }
            Op::Destroy { id } => self.destroy(u32::from(id)),
            Op::Map { ioas, flags, va, length: len, iova: at } => {
                let (ioas_id, flags) = (self.ioas(ioas), u32::from(flags) % 9);
                let (user_va, length, iova) = (address(va), length(len), iova(at));
                let map = IoasMap { ioas_id, flags, user_va, length, iova, ..IoasMap::default() };
                let expected = self.model.map(who, ioas_id, flags, user_va, length, iova);
                assert_eq!(self.run(map).map(|done| done.iova), expected, "{what}");
            }
            Op::MapFile { ioas, flags, start, length: len, iova: at } => {
                let (ioas_id, flags) = (self.ioas(ioas), u32::from(flags) % 9);
                let start = if start >> 14 == 3 { u64::MAX - u64::from(start & 0xff) } else { u64::from(start) * 64 };
                let (length, iova, fd) = (length(len), iova(at), self.fds[who]);
                let map = IoasMapFile { ioas_id, flags, start, length, iova, fd, size: 0 };
                let expected = self.model.map_file(who, ioas_id, flags, start, length, iova);
                assert_eq!(self.run(map).map(|done| done.iova), expected, "{what}");
            }
            Op::Copy { from, to, flags, src, length: len, dst } => {
                let (from, to, flags) = (self.ioas(from), self.ioas(to), u32::from(flags) % 9);
                let (src_iova, dst_iova, length) = (iova(src), iova(dst), length(len));
                let copy = IoasCopy { src_ioas_id: from, dst_ioas_id: to, flags, length, dst_iova, src_iova, size: 0 };
                let expected = self.model.copy((from, src_iova), (to, dst_iova), flags, length);
                assert_eq!(self.run(copy).map(|done| done.dst_iova), expected, "{what}");
            }
            Op::Unmap { ioas, iova: at, length: len } => self.unmap(self.ioas(ioas), iova(at), length(len), &what),
            Op::UnmapAll { ioas } => self.unmap(self.ioas(ioas), 0, u64::MAX, &what),
            Op::Ranges { ioas, capacity } => self.ranges(self.ioas(ioas), u32::from(capacity) % 8),
            Op::Allow { ioas, count, numbers } => {
                let pairs: Vec<(u64, u64)> = numbers.chunks(2).map(|two| (iova(two[0]), iova(two[1]))).collect();
                self.allow(self.ioas(ioas), &pairs[..usize::from(count) % 4]);
            }
            Op::Reserve { ioas, iova: at, length: len } => {
                let (id, start, length) = (self.ioas(ioas), iova(at), length(len));
                let done = self.test(op::ADD_RESERVED, id, |cmd| {
                    cmd.set_u64(16, start);
                    cmd.set_u64(24, length);
                });
                let model = &mut self.model;
                let expected = (|| {
                    if length == 0 {
                        return Err(Errno::EINVAL);
                    }
                    let last = start.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
                    model.ioas(id)?;
                    if model.is_used(id, start, last) {
                        return Err(Errno::EADDRINUSE);
                    }
                    model.ioas(id)?.reserved.push((0, start, last));
                    Ok(())
                })();
                assert_eq!(done.map(|_| ()), expected, "{what}");
            }
            Op::HugePages { ioas, on } => self.huge_pages(self.ioas(ioas), u64::from(on % 3)),
            Op::Mock { ioas } => self.mock(self.ioas(ioas)),
            Op::Hwpt { mock, ioas, huge } => self.hwpt(mock, self.ioas(ioas), huge),
            Op::Access { ioas, pins } => self.add_access(self.ioas(ioas), pins),
            Op::Pin { access, iova: at, length: len, write } => {
                let (fd, iova, length) = (self.access(access), iova(at), length(len));
                let done = self.test(op::ACCESS_PAGES, fd.cast_unsigned(), |cmd| {
                    cmd.set_u32(16, u32::from(write));
                    cmd.set_u64(24, iova);
                    cmd.set_u64(32, length);
                });
                let expected = self.model.pin_item(fd, iova, length, write);
                assert_eq!(done.map(|done| done.u32_at(20)), expected, "{what}");
            }
            Op::Unpin { access, item } => {
                let (fd, item) = (self.access(access), u32::from(item));
                let done = self.test(op::DESTROY_ACCESS_PAGES, fd.cast_unsigned(), |cmd| cmd.set_u32(16, item));
                assert_eq!(done.map(|_| ()), self.model.unpin_item(fd, item), "{what}");
            }
            Op::Read { access, iova: at, length: len, slow } => {
                self.rw(self.access(access), iova(at), length(len), false, slow, &what);
            }
            Op::Write { access, iova: at, length: len, slow } => {
                self.rw(self.access(access), iova(at), length(len), true, slow, &what);
            }
            Op::Move { access, ioas } => self.move_access(self.access(access), self.ioas(ioas)),
            Op::CloseAccess { access } => self.close_access(self.access(access)),
            Op::ChangeProcess {} => {
                let expected = self.model.change_process(who);
                assert_eq!(self.run(IoasChangeProcess::default()).map(|_| ()), expected, "{what}");
            }
            Op::Switch { who, privileged, limit } => {
                self.who = usize::from(who & 1);
                let pages = if limit > 200 { u64::MAX / PAGE } else { u64::from(limit) };
                let client = &self.clients[self.who];
                client.memlock.set(pages.saturating_mul(PAGE));
                client.capabilities.replace(if privileged { vec![Capability::IpcLock] } else { vec![] });
                self.model.limit[self.who] = pages;
                self.model.privileged[self.who] = privileged;
            }
            Op::Compat { ioas, op } => self.compat(self.ioas(ioas), u16::from(op % 4)),
            Op::SetIommu { number } => {
                let number = u64::from(number % 5);
                let expected = match (number, self.model.compat) {
                    (1 | 3, None) => Err(Errno::ENODEV),
                    (1, Some(id)) => self.disable_huge_pages(id),
                    (3, _) => Ok(()),
                    _ => Err(Errno::EINVAL),
                };
                assert_eq!(self.ioctl(SET_IOMMU, number).map(|_| ()), expected, "{what}");
            }
            Op::DmaMap { flags, va, length: len, iova: at } => {
                let (flags, vaddr, iova, size) = (u32::from(flags) % 5, address(va), iova(at), length(len));
                let arg = self.clients[who].put(&DmaMap { argsz: 32, flags, vaddr, iova, size });
                let expected = match self.model.compat {
                    _ if flags > 3 => Err(Errno::EINVAL),
                    None => Err(Errno::ENODEV),
                    Some(id) => {
                        let prot = 1 | (flags & 1) << 2 | flags & 2;
                        self.model.map_user(who, id, prot, vaddr, size, iova).map(|_| ())
                    }
                };
                assert_eq!(self.ioctl(MAP_DMA, arg).map(|_| ()), expected, "{what}");
            }
            Op::DmaUnmap { all, iova: at, length: len } => self.dma_unmap(all, iova(at), length(len), &what),
            Op::Raw { nr, size, words } => {
                let arg = self.clients[who].put(words.as_bytes());
                let size = u32::from(size).to_ne_bytes();
                let _ = self.clients[who].write(arg, &size);
                let mut call = Call { caller: &self.clients[who], files: &mut self.files };
                let _ = self.iommufd.ioctl(self.other, uapi::iommufd::request(nr), arg, &mut call);
            }
        }
    }

    fn destroy(&mut self, id: u32) {
        let model = &self.model;
        let held = model
            .ioases
            .get(&id)
            .map(|ioas| !ioas.domains.is_empty() || model.accesses.values().any(|access| access.ioas == id));
        let hwpt = model.ioases.iter().find_map(|(ioas, it)| it.domains.get(&id).map(|domain| (*ioas, domain.clone())));
        let expected = match (held, model.mocks.get(&id), &hwpt) {
            (Some(false), ..) | (_, Some(_), _) => Ok(()),
            (.., Some((_, domain))) if !domain.automatic => Ok(()),
            _ if model.ids.contains(&id) => Err(Errno::EBUSY),
            _ => Err(Errno::ENOENT),
        };
        assert_eq!(self.run(Destroy { id, ..Destroy::default() }).map(|_| ()), expected, "destroy {id}");
        if expected.is_err() {
            return;
        }
        if let Some((device, ioas, hwpt)) = self.model.mocks.remove(&id) {
            self.model.ids.remove(&device);
            let last = self.model.ioas(ioas).ok().and_then(|ioas| ioas.domains.get_mut(&hwpt)).is_some_and(|domain| {
                domain.devices -= 1;
                domain.devices == 0
            });
            if last {
                self.model.remove_domain(ioas, hwpt);
            }
        } else if let Some((ioas, _)) = hwpt {
            self.model.remove_domain(ioas, id);
        } else {
            self.model.unmap(id, 0, u64::MAX).1.expect("everything can go");
            self.model.ioases.remove(&id);
            self.model.compat = self.model.compat.filter(|compat| *compat != id);
        }
        self.model.ids.remove(&id);
    }

    fn unmap(&mut self, ioas_id: u32, iova: u64, length: u64, what: &str) {
        let model = &mut self.model;
        let expected = (|| {
            model.ioas(ioas_id)?;
            if (iova, length) == (0, u64::MAX) {
                return Ok(model.unmap(ioas_id, 0, u64::MAX).0);
            }
            if iova == u64::MAX || length == u64::MAX {
                return Err(Errno::EOVERFLOW);
            }
            if length == 0 {
                return Err(Errno::EINVAL);
            }
            let last = iova.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
            let (bytes, done) = model.unmap(ioas_id, iova, last);
            done?;
            if bytes == 0 { Err(Errno::ENOENT) } else { Ok(bytes) }
        })();
        let unmap = IoasUnmap { ioas_id, iova, length, size: 0 };
        assert_eq!(self.run(unmap).map(|done| done.length), expected, "{what}");
    }

    fn ranges(&mut self, ioas_id: u32, num_iovas: u32) {
        let array = self.clients[self.who].room(256);
        let cmd = IoasIovaRanges { ioas_id, num_iovas, allowed_iovas: array, ..IoasIovaRanges::default() };
        let (done, reply) = self.both(cmd);
        if !self.model.ioases.contains_key(&ioas_id) {
            return assert_eq!(done, Err(Errno::ENOENT));
        }
        let holes = self.model.holes(ioas_id);
        let expected = if holes.len() > num_iovas as usize { Err(Errno::EMSGSIZE) } else { Ok(()) };
        assert_eq!((done, reply.num_iovas as usize), (expected, holes.len()));
        assert_eq!(reply.out_iova_alignment, self.model.alignment(ioas_id));
        for (n, hole) in (0..num_iovas).zip(holes) {
            let range: IovaRange = self.clients[self.who].get(array + u64::from(n) * 16);
            assert_eq!((range.start, range.last), hole);
        }
    }

    fn allow(&mut self, ioas_id: u32, pairs: &[(u64, u64)]) {
        let list: Vec<IovaRange> = pairs.iter().map(|(start, last)| IovaRange { start: *start, last: *last }).collect();
        let allowed_iovas = self.clients[self.who].put(list.as_bytes());
        let cmd = IoasAllowIovas { ioas_id, num_iovas: list.len() as u32, allowed_iovas, size: 0, reserved: 0 };
        let model = &mut self.model;
        let expected = (|| {
            let ioas = model.ioas(ioas_id)?;
            for (n, (start, last)) in pairs.iter().enumerate() {
                let overlaps = pairs[..n].iter().any(|other| other.0 <= *last && *start <= other.1);
                if start >= last || overlaps {
                    return Err(Errno::EINVAL);
                }
            }
            let reserved = |(start, last): &(u64, u64)| ioas.reserved.iter().any(|r| r.1 <= *last && *start <= r.2);
            if pairs.iter().any(reserved) {
                return Err(Errno::EADDRINUSE);
            }
            ioas.allowed = pairs.to_vec();
            Ok(())
        })();
        assert_eq!(self.run(cmd).map(|_| ()), expected, "{pairs:x?}");
    }

    fn disable_huge_pages(&mut self, id: u32) -> Result<(), Errno> {
        let ioas = self.model.ioas(id)?;
        if !ioas.huge {
            return Ok(());
        }
        if !ioas.domains.is_empty() && !ioas.areas.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.model.conforms(id, PAGE)?;
        self.model.ioas(id)?.huge = false;
        Ok(())
    }

    fn huge_pages(&mut self, object_id: u32, val64: u64) {
        let cmd =
            SetOption { option_id: option::HUGE_PAGES, op: option::SET, object_id, val64, ..SetOption::default() };
        let done = self.run(cmd).map(|_| ());
        let expected = match val64 {
            _ if !self.model.ioases.contains_key(&object_id) => Err(Errno::ENOENT),
            0 => self.disable_huge_pages(object_id),
            1 => self.model.ioas(object_id).map(|ioas| ioas.huge = true),
            _ => Err(Errno::EINVAL),
        };
        assert_eq!(done, expected, "huge pages {val64}");
    }

    fn mock(&mut self, ioas: u32) {
        let before = self.model.ids.clone();
        let done = self.test(op::MOCK_DOMAIN, ioas, |_| ());
        if !self.model.ioases.contains_key(&ioas) {
            return assert_eq!(done.map(|_| ()), Err(Errno::ENOENT));
        }
        let automatic = self.model.ioases[&ioas].domains.iter().find(|(_, domain)| domain.automatic);
        if let Some((hwpt, _)) = automatic {
            let (hwpt, done) = (*hwpt, done.expect("it joins the HWPT that there is"));
            assert_eq!(done.u32_at(20), hwpt);
            self.add_mock(&done, ioas);
        } else {
            let domain = Domain {
                first: test::APERTURE_START,
                last: test::APERTURE_LAST,
                page: test::PAGE_SIZE,
                automatic: true,
                devices: 0,
            };
            let hwpt = done.as_ref().map_or(u32::MAX, |done| done.u32_at(20));
            let expected = self.model.add_domain(ioas, hwpt, domain);
            assert_eq!(done.as_ref().map(|_| ()), expected.as_ref().map(|_| ()), "mock on {ioas}");
            match done {
                Ok(done) => self.add_mock(&done, ioas),
                Err(_) => assert_eq!(self.model.ids, before),
            }
        }
    }

    fn add_mock(&mut self, reply: &TestCmd, ioas: u32) {
        let (mock, hwpt, device) = (reply.u32_at(16), reply.u32_at(20), reply.u32_at(24));
        assert!(self.model.ids.insert(mock) && self.model.ids.insert(device), "fresh ids");
        self.model.mocks.insert(mock, (device, ioas, hwpt));
        if let Some(domain) = self.model.ioas(ioas).ok().and_then(|ioas| ioas.domains.get_mut(&hwpt)) {
            domain.devices += 1;
        }
    }

    fn hwpt(&mut self, mock: u8, pt_id: u32, huge: bool) {
        let count = self.model.mocks.len();
        let device = self.model.mocks.values().nth(usize::from(mock) % (count + 1)).map(|mock| mock.0);
        let kind = if huge { test::TABLE_HUGE } else { test::TABLE_DEFAULT };
        let data_uptr = self.clients[self.who].put(&[0, kind]);
        let dev_id = device.unwrap_or(9999);
        let cmd =
            HwptAlloc { dev_id, pt_id, data_type: test::HWPT_DATA, data_len: 8, data_uptr, ..HwptAlloc::default() };
        let done = self.run(cmd).map(|done| done.out_hwpt_id);
        let domain = match huge {
            true => Domain { first: 0, last: (1 << 56) - 1, page: PAGE, automatic: false, devices: 0 },
            false => Domain {
                first: test::APERTURE_START,
                last: test::APERTURE_LAST,
                page: test::PAGE_SIZE,
                automatic: false,
                devices: 0,
            },
        };
        let id = self.model.next_id();
        let expected = if device.is_none() {
            Err(Errno::ENOENT)
        } else if !self.model.ioases.contains_key(&pt_id) {
            Err(Errno::EINVAL)
        } else {
            self.model.add_domain(pt_id, id, domain).map(|()| id)
        };
        assert_eq!(done, expected, "HWPT on {pt_id}");
    }

    fn add_access(&mut self, ioas: u32, pins: bool) {
        let done = self.test(op::CREATE_ACCESS, ioas, |cmd| cmd.set_u32(20, u32::from(pins)));
        let expected = if !self.model.ioases.contains_key(&ioas) {
            Err(Errno::ENOENT)
        } else if pins {
            self.model.conforms(ioas, PAGE)
        } else {
            Ok(())
        };
        assert_eq!(done.as_ref().map(|_| ()), expected.as_ref().map(|_| ()), "access of {ioas}");
        if let Ok(done) = done {
            let (fd, id) = (done.u32_at(16).cast_signed(), self.model.next_id());
            // Each program has its own descriptors; the other gets it passed.
            let file = self.clients[self.who].file(fd).ok().flatten().expect("it was installed");
            self.clients[self.who].close(fd);
            let fd = 1000 + self.files.allocate().0 as i32;
            self.clients.iter().for_each(|client| client.install_at(fd, file));
            self.model.add_access(fd, id, ioas, pins);
        }
    }

    fn rw(&mut self, fd: i32, iova: u64, length: u64, write: bool, slow: bool, what: &str) {
        let buffer = self.clients[self.who].room(length.min(128 * 1024));
        let flags = u32::from(write) | u32::from(slow) << 2;
        let done = self.test(op::ACCESS_RW, fd.cast_unsigned(), |cmd| {
            cmd.set_u64(16, iova);
            cmd.set_u64(24, length);
            cmd.set_u64(32, buffer);
            cmd.set_u32(40, flags);
        });
        if !self.model.accesses.contains_key(&fd) && length <= 16 << 20 {
            return assert_eq!(done.map(|_| ()), Err(Errno::EBADFD), "{what}");
        }
        if length > 128 * 1024 {
            // The buffer is too small for what might be done.
            return assert!(done.is_err(), "{what}");
        }
        let expected = self.model.rw(self.who, fd, iova, length, write, slow);
        assert_eq!(done.map(|_| ()), expected, "{what}");
        if expected.is_ok() && !write {
            let ioas = self.model.accesses[&fd].ioas;
            let slices = self.model.slices(ioas, iova, iova + (length - 1)).unwrap_or_default();
            let bytes = slices.iter().flat_map(|(pages, start, length)| {
                let pages = &self.model.pages[*pages];
                let (at, length) = (pages.base + start, *length as usize);
                if pages.file { self.memory.bytes(at, length) } else { self.clients[pages.who].get_bytes(at, length) }
            });
            assert!(bytes.eq(self.clients[self.who].get_bytes(buffer, length as usize)), "{what}");
        }
    }

    fn move_access(&mut self, fd: i32, ioas: u32) {
        let done = self.test(op::ACCESS_REPLACE_IOAS, fd.cast_unsigned(), |cmd| cmd.set_u32(16, ioas));
        let expected = match self.model.accesses.get(&fd).map(|access| (access.ioas, access.pins)) {
            None => Err(Errno::EBADFD),
            Some(_) if !self.model.ioases.contains_key(&ioas) => Err(Errno::ENOENT),
            Some((old, _)) if old == ioas => Ok(()),
            Some((_, true)) => self.model.conforms(ioas, PAGE),
            Some(_) => Ok(()),
        };
        assert_eq!(done.map(|_| ()), expected, "move to {ioas}");
        if expected.is_ok() && self.model.accesses[&fd].ioas != ioas {
            let items: Vec<u32> = self.model.accesses[&fd].items.keys().copied().collect();
            items.into_iter().for_each(|item| self.model.unpin_item(fd, item).expect("it is pinned"));
            if let Some(access) = self.model.accesses.get_mut(&fd) {
                access.ioas = ioas;
            }
        }
    }

    fn close_access(&mut self, fd: i32) {
        if !self.model.accesses.contains_key(&fd) {
            return;
        }
        if let Ok(Some(file)) = self.clients[0].file(fd) {
            self.clients.iter().for_each(|client| client.close(fd));
            self.iommufd.release(file);
        }
        self.model.close_access(fd);
    }

    fn compat(&mut self, ioas_id: u32, op: u16) {
        let done = self.run(VfioIoas { ioas_id, op, ..VfioIoas::default() }).map(|done| done.ioas_id);
        let expected = match op {
            vfio_ioas::GET => self.model.compat.ok_or(Errno::ENODEV),
            vfio_ioas::SET if !self.model.ioases.contains_key(&ioas_id) => Err(Errno::ENOENT),
            vfio_ioas::SET => {
                self.model.compat = Some(ioas_id);
                Ok(ioas_id)
            }
            vfio_ioas::CLEAR => {
                self.model.compat = None;
                Ok(ioas_id)
            }
            _ => Err(Errno::EOPNOTSUPP),
        };
        assert_eq!(done, expected, "compat {op}");
    }

    fn dma_unmap(&mut self, all: bool, iova: u64, size: u64, what: &str) {
        let (iova, size) = if all { (0, 0) } else { (iova, size) };
        let arg = self.clients[self.who].put(&DmaUnmap { argsz: 24, flags: u32::from(all) << 1, iova, size });
        let done = self.ioctl(UNMAP_DMA, arg).map(|_| ());
        let written = self.clients[self.who].get::<DmaUnmap>(arg).size;
        let Some(id) = self.model.compat else { return assert_eq!(done, Err(Errno::ENODEV), "{what}") };
        if !all && !self.model.ioases[&id].huge {
            let mut cuts = vec![iova.wrapping_add(size).wrapping_sub(1)];
            cuts.extend(iova.checked_sub(1));
            for cut in cuts {
                if let Err(errno) = self.model.cut(id, cut) {
                    return assert_eq!((done, written), (Err(errno), size), "{what}");
                }
            }
        }
        let expected = match (all, size, iova.checked_add(size.wrapping_sub(1))) {
            (true, ..) => self.model.unmap(id, 0, u64::MAX),
            (_, 0, _) => (0, Err(Errno::EINVAL)),
            (.., None) => (0, Err(Errno::EOVERFLOW)),
            (.., Some(last)) => self.model.unmap(id, iova, last),
        };
        assert_eq!((written, done), expected, "{what}");
    }

    /// What programs pay is what the model says.
    fn check_counts(&self, op: &Op) {
        for (who, client) in self.clients.iter().enumerate() {
            let accounts = &self.accounts;
            let counts = (accounts.pages(client.process), accounts.pinned(client.process));
            assert_eq!(counts, (self.model.locked[who], self.model.pinned[who]), "{op:?}");
        }
        assert_eq!(self.accounts.user_pages(self.clients[0].user.get()), self.model.user, "{op:?}");
    }

    /// All is closed, in any order: nobody pays for anything any more.
    fn finish(mut self) {
        self.iommufd.release(self.file);
        let fds: Vec<i32> = self.model.accesses.keys().copied().collect();
        fds.into_iter().for_each(|fd| self.close_access(fd));
        self.iommufd.release(self.other);
        for client in &self.clients {
            assert_eq!(self.accounts.pages(client.process), 0);
        }
        assert_eq!(self.accounts.user_pages(self.clients[0].user.get()), 0);
    }
}

/// Seeds of the target `iommufd`.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    const FIXED_RW: u8 = 7;
    let fixed = |n: u16| Op::Map { ioas: 0, flags: FIXED_RW, va: n * 8, length: 8, iova: n * 8 };
    let auto = |va, length| Op::Map { ioas: 0, flags: 6, va, length, iova: 0 };
    vec![
        (
            "maps",
            seed(&0_u8, &[Op::Alloc {}, fixed(0), fixed(1), auto(4, 4), Op::Unmap { ioas: 0, iova: 0, length: 16 }]),
        ),
        (
            "domains",
            seed(
                &0_u8,
                &[
                    Op::Alloc {},
                    fixed(0),
                    Op::Mock { ioas: 0 },
                    fixed(2),
                    Op::Ranges { ioas: 0, capacity: 4 },
                    Op::Hwpt { mock: 0, ioas: 0, huge: true },
                    Op::Mock { ioas: 0 },
                    Op::Destroy { id: 2 },
                    Op::Map { ioas: 0, flags: FIXED_RW, va: 6 << 13, length: 8, iova: 100 },
                    Op::UnmapAll { ioas: 0 },
                ],
            ),
        ),
        (
            "copies",
            seed(
                &0_u8,
                &[
                    Op::Alloc {},
                    Op::Alloc {},
                    fixed(0),
                    fixed(1),
                    Op::Mock { ioas: 1 },
                    Op::Copy { from: 0, to: 1, flags: FIXED_RW, src: 4, length: 8, dst: 0 },
                    Op::Copy { from: 1, to: 1, flags: 5, src: 2, length: 4, dst: 32 },
                    Op::Mock { ioas: 0 },
                    Op::UnmapAll { ioas: 1 },
                ],
            ),
        ),
        (
            "accesses",
            seed(
                &0_u8,
                &[
                    Op::Alloc {},
                    fixed(0),
                    Op::Access { ioas: 0, pins: true },
                    Op::Pin { access: 0, iova: 4, length: 4, write: true },
                    Op::Write { access: 0, iova: 3, length: 9, slow: true },
                    Op::Read { access: 0, iova: 1, length: 4, slow: false },
                    Op::Mock { ioas: 0 },
                    Op::Unpin { access: 0, item: 0 },
                    Op::Pin { access: 0, iova: 0, length: 8, write: false },
                    Op::Unmap { ioas: 0, iova: 0, length: 8 },
                    Op::CloseAccess { access: 0 },
                ],
            ),
        ),
        (
            "files-and-heirs",
            seed(
                &1_u8,
                &[
                    Op::Alloc {},
                    Op::MapFile { ioas: 0, flags: FIXED_RW, start: 64, length: 8, iova: 0 },
                    Op::Mock { ioas: 0 },
                    Op::Switch { who: 1, privileged: false, limit: 2 },
                    Op::ChangeProcess {},
                    Op::Switch { who: 1, privileged: false, limit: 1 },
                    Op::MapFile { ioas: 0, flags: FIXED_RW, start: 0, length: 8, iova: 16 },
                ],
            ),
        ),
        (
            "vfio",
            seed(
                &1_u8,
                &[
                    Op::Alloc {},
                    Op::Compat { ioas: 0, op: 1 },
                    Op::SetIommu { number: 1 },
                    Op::Mock { ioas: 0 },
                    Op::DmaMap { flags: 3, va: 0, length: 16, iova: 0 },
                    Op::DmaUnmap { all: false, iova: 4, length: 4 },
                    Op::DmaUnmap { all: true, iova: 0, length: 0 },
                ],
            ),
        ),
        (
            "ranges",
            seed(
                &0_u8,
                &[
                    Op::Alloc {},
                    Op::Allow { ioas: 0, count: 2, numbers: [0, 16, 40, 60, 0, 0] },
                    auto(0, 8),
                    Op::Reserve { ioas: 0, iova: 80, length: 8 },
                    Op::Reserve { ioas: 0, iova: 10, length: 8 },
                    Op::Ranges { ioas: 0, capacity: 1 },
                    Op::HugePages { ioas: 0, on: 0 },
                ],
            ),
        ),
        ("raw", seed(&0_u8, &[Op::Raw { nr: 0x89, size: 48, words: [0, 1, 2, 3] }])),
    ]
}
