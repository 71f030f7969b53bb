// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! iommufd's HWPTs and all that hangs on them: attachments with and without
//! PASID, dirty tracking, fault queues, vIOMMUs, virtual devices, event queues
//! and hardware queues. Any sequence of calls, beside a model of who holds what; each answer
//! must be the model's, and in the end nothing is left.

mod graph;

use std::sync::Arc;

use arbitrary::Unstructured;
use caller::testing::{Client, TestPlatform};
use caller::{Accounts, Caller, FileId, FileIds, Platform};
use iommufd::{Call, Iommufd, Options};
use uapi::Errno;
use uapi::iommufd::{
    Command, Destroy, FaultQueueAlloc, HwQueueAlloc, HwptAlloc, HwptGetDirtyBitmap, HwptInvalidate,
    HwptSetDirtyTracking, IoasAlloc, IoasMap, IoasUnmap, VdeviceAlloc, VeventqAlloc, ViommuAlloc,
};
use uapi::iommufd_events::PageFault;
use uapi::iommufd_test::{self as test, TestCmd, op};

use crate::wire::{Wire, operations, seed, wire};
use graph::{Graph, LENGTH, Object};

wire! {
    /// Objects count modulo those that there are; one more names one that there is not.
    enum Op {
        Ioas {},
        Mock { ioas: u8, flags: u8 },
        Destroy { object: u8 },
        Map { ioas: u8 },
        Unmap { ioas: u8 },
        Hwpt { device: u8, object: u8, flags: u8, data: u8, fault: u8 },
        Replace { mock: u8, object: u8 },
        Attach { mock: u8, pasid: u8, object: u8 },
        ReplacePasid { mock: u8, pasid: u8, object: u8 },
        Detach { mock: u8, pasid: u8 },
        Track { hwpt: u8, flags: u8 },
        Dirty { hwpt: u8, bits: u64 },
        Bitmap { hwpt: u8, flags: u8, first: u8, count: u8 },
        FaultQueue { flags: u8 },
        Fault { device: u8, pasid: u8, group: u8 },
        ReadFaults { queue: u8, bytes: u8 },
        Answer { queue: u8, cookie: u8, code: u8, count: u8 },
        Close { queue: u8 },
        Viommu { device: u8, hwpt: u8, kind: u8 },
        Vdevice { viommu: u8, device: u8, number: u8 },
        EventQueue { viommu: u8, kind: u8, depth: u8 },
        Event { device: u8 },
        ReadEvents { queue: u8, bytes: u8 },
        Invalidate { object: u8, kind: u8, length: u8, count: u8, word: u8, flags: u8 },
        HwQueue { viommu: u8, index: u8, first: u8, pages: u8, kind: u8 },
    }
}

/// Bytes of a granule of the mock's log.
const GRANULE: u64 = test::PAGE_SIZE;
const AT: u64 = test::APERTURE_START;
const PAGE: u64 = 4096;
const RAM: u64 = 0x4000_0000;

struct World {
    iommufd: Iommufd,
    accounts: Accounts,
    files: FileIds,
    file: FileId,
    client: Client,
    graph: Graph,
    /// Files of queues, by object.
    queues: Vec<(u32, FileId)>,
}

/// The body of the target `hwpt`.
pub(crate) fn run(data: &[u8]) {
    play(data).finish();
}

fn play(data: &[u8]) -> World {
    let mut u = Unstructured::new(data);
    let _ = u8::decode(&mut u);
    let mut world = World::new();
    for op in operations::<Op>(&mut u, 200) {
        world.step(&op);
        world.check(&op);
    }
    world
}

impl World {
    fn new() -> World {
        let accounts = Accounts::new(false);
        let options = Options { selftest: true, ..Options::default() };
        let platform = Arc::<TestPlatform>::default() as Arc<dyn Platform>;
        let mut iommufd = Iommufd::new(platform, options, accounts.clone());
        let mut files = FileIds::default();
        let file = files.allocate();
        iommufd.open(file, false);
        let client = Client::new(1);
        client.memlock.set(u64::MAX);
        client.memory.map(RAM, LENGTH, true);
        World { iommufd, accounts, files, file, client, graph: Graph::default(), queues: Vec::new() }
    }

    fn run<T: Command>(&mut self, command: T) -> Result<T, Errno> {
        let mut bytes = command.as_bytes().to_vec();
        let size = (bytes.len() as u32).to_ne_bytes();
        bytes[..4].copy_from_slice(&size);
        let arg = self.client.put_bytes(&bytes);
        let mut call = Call { caller: &self.client, files: &mut self.files };
        self.iommufd.ioctl(self.file, T::REQUEST, arg, &mut call)?;
        Ok(self.client.get(arg))
    }

    /// A test call with words from offset 16 on.
    fn test(&mut self, op: u32, id: u32, words: &[u32]) -> Result<TestCmd, Errno> {
        let mut cmd = TestCmd { op, id, ..TestCmd::default() };
        (16..).step_by(4).zip(words).for_each(|(at, word)| cmd.set_u32(at, *word));
        self.run(cmd)
    }

    fn queue(&mut self, id: u32, fd: u32) {
        let file = self.client.file(fd.cast_signed()).ok().flatten().expect("it was installed");
        self.queues.push((id, file));
    }

    fn queue_file(&self, n: u8) -> Option<(u32, FileId)> {
        self.queues.get(usize::from(n).checked_rem(self.queues.len())?).copied()
    }

    fn step(&mut self, op: &Op) {
        let what = format!("{op:?}");
        let graph = &mut self.graph;
        match *op {
            Op::Ioas {} => {
                let id = graph.add(Object::Ioas { mapped: false });
                assert_eq!(self.run(IoasAlloc::default()).map(|done| done.out_ioas_id), Ok(id));
            }
            Op::Mock { ioas, flags } => {
                let (ioas, flags) = (graph.pick(ioas, Object::is_ioas), [0, 1, 4, 5, 2][usize::from(flags % 5)]);
                let expected = graph.mock(ioas, flags);
                let mut cmd = TestCmd { op: op::MOCK_DOMAIN_FLAGS, id: ioas, ..TestCmd::default() };
                cmd.set_u32(28, flags);
                let done = self.run(cmd).map(|cmd| (cmd.u32_at(16), cmd.u32_at(20), cmd.u32_at(24)));
                assert_eq!(done, expected, "{what}");
            }
            Op::Destroy { object } => {
                let id = graph.pick(object, |_| true);
                let expected = graph.destroy(id);
                assert_eq!(self.run(Destroy { id, ..Destroy::default() }).map(|_| ()), expected, "{what}: {id}");
            }
            Op::Map { ioas } => {
                let ioas_id = graph.pick(ioas, Object::is_ioas);
                let expected = graph.map(ioas_id);
                let map = IoasMap { ioas_id, flags: 7, user_va: RAM, length: LENGTH, iova: AT, ..IoasMap::default() };
                assert_eq!(self.run(map).map(|_| ()), expected, "{what}");
            }
            Op::Unmap { ioas } => {
                let ioas_id = graph.pick(ioas, Object::is_ioas);
                let expected = graph.unmap(ioas_id);
                let unmap = IoasUnmap { ioas_id, iova: AT, length: LENGTH, size: 0 };
                assert_eq!(self.run(unmap).map(|_| ()), expected, "{what}");
            }
            Op::Hwpt { device, object, flags, data, fault } => {
                let (dev_id, pt_id) = (graph.pick(device, Object::is_device), graph.pick(object, |_| true));
                let (flags, fault_id) = (u32::from(flags % 18), graph.pick(fault, Object::is_fault));
                let content = test::HwptData { iotlb: 7, pagetable_type: test::TABLE_DEFAULT };
                let data_uptr = self.client.put(&content);
                let (data_type, data_len) =
                    [(0, 0), (test::HWPT_DATA, 8), (1, 8), (test::HWPT_DATA, 0), (0, 8)][usize::from(data % 5)];
                let expected = graph.hwpt(dev_id, pt_id, flags, (data_type, data_len), fault_id);
                let alloc = HwptAlloc { flags, dev_id, pt_id, data_type, data_len, data_uptr, ..HwptAlloc::default() };
                let done = self.run(HwptAlloc { fault_id, ..alloc }).map(|done| done.out_hwpt_id);
                assert_eq!(done, expected, "{what}: {dev_id} {pt_id}");
            }
            Op::Replace { mock, object } => {
                let (mock, pt) = (graph.pick(mock, Object::is_mock), graph.pick(object, |_| true));
                let expected = graph.change(mock, 0, pt, true);
                let done = self.test(op::MOCK_DOMAIN_REPLACE, mock, &[pt]).map(|cmd| cmd.u32_at(16));
                assert_eq!(done, expected, "{what}: {mock} {pt}");
            }
            Op::Attach { mock, pasid, object } => {
                let (mock, pt) = (graph.pick(mock, Object::is_mock), graph.pick(object, |_| true));
                let pasid = u32::from(pasid % 4);
                let expected = graph.change(mock, pasid, pt, false);
                let done = self.test(op::PASID_ATTACH, mock, &[pasid, pt]).map(|cmd| cmd.u32_at(20));
                assert_eq!(done, expected, "{what}: {mock} {pt}");
            }
            Op::ReplacePasid { mock, pasid, object } => {
                let (mock, pt) = (graph.pick(mock, Object::is_mock), graph.pick(object, |_| true));
                let pasid = 1 + u32::from(pasid % 3);
                let expected = graph.change(mock, pasid, pt, true);
                let done = self.test(op::PASID_REPLACE, mock, &[pasid, pt]).map(|cmd| cmd.u32_at(20));
                assert_eq!(done, expected, "{what}: {mock} {pt}");
            }
            Op::Detach { mock, pasid } => {
                let (mock, pasid) = (graph.pick(mock, Object::is_mock), 1 + u32::from(pasid % 3));
                let expected = graph.detach(mock, pasid);
                assert_eq!(self.test(op::PASID_DETACH, mock, &[pasid]).map(|_| ()), expected, "{what}");
            }
            Op::Track { hwpt, flags } => {
                let (hwpt_id, flags) = (graph.pick(hwpt, Object::is_paging), u32::from(flags % 3));
                let expected = graph.track(hwpt_id, flags);
                let set = HwptSetDirtyTracking { flags, hwpt_id, ..HwptSetDirtyTracking::default() };
                assert_eq!(self.run(set).map(|_| ()), expected, "{what}");
            }
            Op::Dirty { hwpt, bits } => {
                let hwpt = graph.pick(hwpt, Object::is_paging);
                let expected = graph.dirty(hwpt, bits);
                let bitmap = self.client.put(&bits.to_le());
                let mut cmd = TestCmd { op: op::DIRTY, id: hwpt, ..TestCmd::default() };
                for (at, value) in [(24, AT), (32, 64 * GRANULE), (40, GRANULE), (48, bitmap)] {
                    cmd.set_u64(at, value);
                }
                assert_eq!(self.run(cmd).map(|cmd| cmd.u64_at(56)), expected, "{what}");
            }
            Op::Bitmap { hwpt, flags, first, count } => {
                let (hwpt_id, flags) = (graph.pick(hwpt, Object::is_paging), u32::from(flags % 3));
                let (first, count) = (u64::from(first % 64), 1 + u64::from(count % 64));
                let expected = graph.bitmap(hwpt_id, flags, first, count);
                let data = self.client.put(&[0u64; 2]);
                let (iova, length) = (AT + first * GRANULE, count * GRANULE);
                let get =
                    HwptGetDirtyBitmap { hwpt_id, flags, iova, length, page_size: GRANULE, data, ..Default::default() };
                let done = self.run(get).map(|_| self.client.get::<u64>(data));
                assert_eq!(done, expected, "{what}");
            }
            Op::FaultQueue { flags } => {
                let flags = u32::from(flags % 8 == 7);
                let expected =
                    if flags == 0 { Ok(graph.add(Object::Fault { open: true })) } else { Err(Errno::EOPNOTSUPP) };
                let done = self.run(FaultQueueAlloc { flags, ..FaultQueueAlloc::default() });
                assert_eq!(done.map(|done| done.out_fault_id), expected, "{what}");
                if let Ok(done) = done {
                    self.queue(done.out_fault_id, done.out_fault_fd);
                }
            }
            Op::Fault { device, pasid, group } => {
                let device = graph.pick(device, Object::is_device);
                let expected = if graph.has(device, Object::is_device) { Ok(()) } else { Err(Errno::ENOENT) };
                let words = [device, u32::from(pasid % 4), u32::from(group), 1, 0x1000, 0];
                assert_eq!(self.test(op::TRIGGER_IOPF, 0, &words).map(|_| ()), expected, "{what}");
            }
            Op::ReadFaults { queue, bytes } | Op::ReadEvents { queue, bytes } => self.read(queue, u64::from(bytes) * 5),
            Op::Answer { queue, cookie, code, count } => {
                let Some((_, file)) = self.queue_file(queue) else { return };
                let one = [u32::from(cookie), u32::from(code % 3)];
                let bytes: Vec<u8> = one.iter().flat_map(|word| word.to_le_bytes()).collect();
                let buf = self.client.put_bytes(&bytes.repeat(usize::from(count % 4)));
                // Whatever it answers: nothing that was not read and not answered.
                let _ = self.iommufd.write(file, 0, buf, u64::from(count % 4) * 8, &self.client);
            }
            Op::Close { queue } => {
                let Some(at) = usize::from(queue).checked_rem(self.queues.len()) else { return };
                let (id, file) = self.queues.swap_remove(at);
                self.iommufd.release(file);
                self.graph.closed(id);
            }
            Op::Viommu { device, hwpt, kind } => {
                let (dev_id, hwpt_id) = (graph.pick(device, Object::is_device), graph.pick(hwpt, |_| true));
                let kind = [test::TYPE, test::TYPE, 0, 1][usize::from(kind % 4)];
                let expected = graph.viommu(dev_id, hwpt_id, kind);
                let done = self.run(ViommuAlloc { kind, dev_id, hwpt_id, ..ViommuAlloc::default() });
                assert_eq!(done.map(|done| done.out_viommu_id), expected, "{what}: {dev_id} {hwpt_id}");
            }
            Op::Vdevice { viommu, device, number } => {
                let (viommu_id, dev_id) =
                    (graph.pick(viommu, Object::is_viommu), graph.pick(device, Object::is_device));
                let virt_id = u64::from(number % 4);
                let expected = graph.vdevice(viommu_id, dev_id, virt_id);
                let done = self.run(VdeviceAlloc { viommu_id, dev_id, virt_id, ..VdeviceAlloc::default() });
                assert_eq!(done.map(|done| done.out_vdevice_id), expected, "{what}: {viommu_id} {dev_id}");
            }
            Op::EventQueue { viommu, kind, depth } => {
                let viommu_id = graph.pick(viommu, Object::is_viommu);
                let kind = if kind % 8 == 7 { 0 } else { test::VEVENTQ };
                let veventq_depth = u32::from(depth % 4);
                let expected = graph.veventq(viommu_id, kind, veventq_depth);
                let done = self.run(VeventqAlloc { viommu_id, kind, veventq_depth, ..VeventqAlloc::default() });
                assert_eq!(done.map(|done| done.out_veventq_id), expected, "{what}: {viommu_id}");
                if let Ok(done) = done {
                    self.queue(done.out_veventq_id, done.out_veventq_fd);
                }
            }
            Op::Event { device } => {
                let device = graph.pick(device, Object::is_device);
                let expected = graph.event(device);
                assert_eq!(self.test(op::TRIGGER_VEVENT, 0, &[device]).map(|_| ()), expected, "{what}: {device}");
            }
            Op::Invalidate { object, kind, length, count, word, flags } => {
                let hwpt_id = graph.pick(object, |_| true);
                let entry = [u32::from(flags % 3), u32::from(word % 6), 0, 0];
                let (entry_len, entry_num) = (u32::from(length % 4) * 4, u32::from(count % 4));
                let data_uptr = self.client.put(&[entry; 4]);
                let data_type = [test::TYPE, 0][usize::from(kind % 2)];
                let invalidate =
                    HwptInvalidate { hwpt_id, data_uptr, data_type, entry_len, entry_num, ..HwptInvalidate::default() };
                let done = self.run(invalidate);
                if !self.graph.has(hwpt_id, |object| object.is_nested() || object.is_viommu()) {
                    assert!(done.is_err(), "{what}");
                }
                assert!(done.is_ok_and(|done| done.entry_num <= entry_num) || done.is_err(), "{what}");
            }
            Op::HwQueue { viommu, index, first, pages, kind } => {
                let (viommu_id, index) = (graph.pick(viommu, Object::is_viommu), u32::from(index % 4));
                let kind = [test::TYPE, test::TYPE, test::TYPE, test::TYPE, test::TYPE, 0, 1, 2][usize::from(kind % 8)];
                let (first, length) = (u64::from(first % 40) * PAGE, u64::from(pages % 4) * PAGE);
                let expected = graph.hw_queue(viommu_id, kind, index, (first, length));
                let alloc = HwQueueAlloc { viommu_id, kind, index, length, ..HwQueueAlloc::default() };
                let done = self.run(HwQueueAlloc { nesting_parent_iova: AT + first, ..alloc });
                assert_eq!(done.map(|done| done.out_hw_queue_id), expected, "{what}: {viommu_id}");
            }
        }
    }

    /// Reads come in whole events.
    fn read(&mut self, queue: u8, bytes: u64) {
        let Some((id, file)) = self.queue_file(queue) else { return };
        let buf = self.client.room(2048);
        let Ok(done) = self.iommufd.read(file, 0, buf, bytes, &self.client) else { return };
        assert!(done <= bytes, "{done} of {bytes} bytes");
        // A fault is 40 bytes; an event 8, and 4 of data if nothing was lost.
        let unit = if self.graph.has(id, Object::is_fault) { size_of::<PageFault>() as u64 } else { 4 };
        assert_eq!(done % unit, 0, "whole events");
    }

    /// What devices are attached to is what the model says, and who pays.
    fn check(&mut self, op: &Op) {
        for (mock, pasid, hwpt) in self.graph.attachments() {
            let done = self.test(op::PASID_CHECK_HWPT, mock, &[pasid, hwpt]).map(|_| ());
            assert_eq!(done, Ok(()), "{op:?}: PASID {pasid} of {mock} is not on {hwpt}");
        }
        let pages = self.graph.pinned();
        assert_eq!(self.accounts.pinned(self.client.process), pages, "{op:?}");
    }

    /// All is closed, in any order: nobody pays for anything any more.
    fn finish(mut self) {
        self.iommufd.release(self.file);
        for (_, file) in std::mem::take(&mut self.queues) {
            self.iommufd.release(file);
        }
        assert_eq!(self.accounts.pinned(self.client.process), 0);
        assert_eq!(self.accounts.user_pages(self.client.user.get()), 0);
    }
}

/// Seeds of the target `hwpt`.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let start = [Op::Ioas {}, Op::Mock { ioas: 0, flags: 2 }, Op::Map { ioas: 0 }];
    let with = |more: &[Op]| seed(&0_u8, &[&start[..], more].concat());
    // Objects: the IOAS 1, the mock's 2, its device 3, its automatic HWPT 4.
    let hwpt = |object, flags, data| Op::Hwpt { device: 0, object, flags, data, fault: 0 };
    vec![
        (
            "dirty",
            with(&[
                hwpt(0, 2, 0),
                Op::Track { hwpt: 1, flags: 1 },
                Op::Dirty { hwpt: 1, bits: 0x8001 },
                Op::Bitmap { hwpt: 1, flags: 1, first: 0, count: 63 },
                Op::Track { hwpt: 1, flags: 0 },
                Op::Bitmap { hwpt: 1, flags: 0, first: 3, count: 20 },
                Op::Unmap { ioas: 0 },
                Op::Replace { mock: 0, object: 4 },
                Op::Destroy { object: 4 },
            ]),
        ),
        (
            "pasids",
            with(&[
                hwpt(0, 8, 0),
                Op::Replace { mock: 0, object: 4 },
                // The automatic one is gone, what comes after it moves up.
                Op::Attach { mock: 0, pasid: 1, object: 3 },
                Op::Attach { mock: 0, pasid: 2, object: 3 },
                Op::ReplacePasid { mock: 0, pasid: 0, object: 3 },
                Op::Detach { mock: 0, pasid: 0 },
            ]),
        ),
        (
            "faults",
            with(&[
                Op::FaultQueue { flags: 0 },
                hwpt(0, 4, 0),
                Op::Replace { mock: 0, object: 5 },
                Op::Fault { device: 0, pasid: 0, group: 1 },
                Op::ReadFaults { queue: 0, bytes: 30 },
                Op::Answer { queue: 0, cookie: 1, code: 0, count: 1 },
                Op::Close { queue: 0 },
            ]),
        ),
        (
            "viommus",
            with(&[
                hwpt(0, 1, 0),
                Op::Viommu { device: 0, hwpt: 4, kind: 0 },
                Op::Vdevice { viommu: 0, device: 0, number: 3 },
                Op::EventQueue { viommu: 0, kind: 0, depth: 2 },
                hwpt(5, 0, 1),
                Op::Replace { mock: 0, object: 8 },
                Op::Event { device: 0 },
                Op::ReadEvents { queue: 0, bytes: 40 },
                Op::Invalidate { object: 8, kind: 0, length: 2, count: 1, word: 1, flags: 0 },
            ]),
        ),
        (
            "hwqueues",
            with(&[
                hwpt(0, 1, 0),
                Op::Viommu { device: 0, hwpt: 4, kind: 0 },
                Op::HwQueue { viommu: 0, index: 1, first: 3, pages: 2, kind: 0 },
                Op::HwQueue { viommu: 0, index: 0, first: 3, pages: 2, kind: 0 },
                Op::HwQueue { viommu: 0, index: 1, first: 8, pages: 1, kind: 0 },
                Op::HwQueue { viommu: 0, index: 2, first: 31, pages: 1, kind: 0 },
                // The first cannot go before the second, nor their memory before them.
                Op::Unmap { ioas: 0 },
                Op::Destroy { object: 6 },
                Op::Destroy { object: 8 },
                Op::Unmap { ioas: 0 },
                Op::Destroy { object: 6 },
                Op::Unmap { ioas: 0 },
            ]),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds get where their names say: model and iommufd agree that they do.
    #[test]
    fn seeds_reach_what_they_are_about() {
        let all = seeds();
        let reach = |name: &str| {
            let seed = all.iter().find(|(of, _)| *of == name).map(|(_, bytes)| bytes.clone());
            play(&seed.unwrap_or_default())
        };
        let viommus = reach("viommus");
        let device = viommus.graph.pick(0, Object::is_device);
        assert_eq!(viommus.graph.event(device), Ok(()), "on a nested HWPT, numbered, with a queue");
        let faults = reach("faults");
        assert!(faults.queues.is_empty() && faults.graph.pick(0, Object::is_fault) != 9999);
        let attached = reach("pasids").graph.attachments();
        assert!(attached.iter().any(|(_, pasid, hwpt)| (*pasid, *hwpt) == (2, 5)), "{attached:?}");
        let queues = reach("hwqueues");
        assert_eq!((queues.graph.pick(0, Object::is_viommu), queues.graph.pinned()), (6, 0), "unmapped in the end");
        let dirty = reach("dirty");
        assert_eq!((dirty.graph.pick(0, Object::is_paging), dirty.graph.pinned()), (5, 0));
    }
}
