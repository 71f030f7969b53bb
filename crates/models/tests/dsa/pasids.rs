// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PASIDs: of a dedicated queue, and of each descriptor of a shared one.

use iommu::{AddressSpace, Mapping, Prot};
use models::dsa::Config;
use models::dsa::spec::{Descriptor, command, wqcfg};
use models::testing::{Access, TestMemory};

use crate::fixture::{DEDICATED, Fixture, RECORD, SHARED, fresh, moving};

/// An address space of two pages with `text` in the first, and its memory.
fn attach(f: &Fixture, pasid: u32, text: &[u8]) -> std::sync::Arc<TestMemory> {
    let (space, memory) = (AddressSpace::new(), TestMemory::new(0x4000, false));
    let mapping =
        Mapping { first: 0, last: 0x3fff, prot: Prot::READ | Prot::WRITE, memory: memory.clone(), offset: 0, tag: 0 };
    space.map(mapping).unwrap();
    memory.set(0, text);
    assert!(f.bench.endpoint.requester.attach_pasid(pasid, Some(space.into())));
    memory
}

fn text(memory: &TestMemory) -> [u8; 4] {
    let mut bytes = [0; 4];
    memory.get(0x2000, &mut bytes);
    bytes
}

/// Copies the text; with a record.
fn copying(pasid: u32) -> Descriptor {
    let copy = moving(0, 0x2000, 4);
    Descriptor { pasid, operation: copy.operation | 0xc, completion: RECORD, ..copy }
}

#[test]
fn of_a_dedicated_queue() {
    let mut f = fresh(Access::Mapped, Config::default());
    f.configure(0, 16, DEDICATED | wqcfg::PASID_ENABLE | 7 << 8);
    f.enable(0);
    let memory = attach(&f, 7, b"seven"[..4].try_into().unwrap());
    f.submit(0, 0, &copying(9));
    f.bench.run();
    assert_eq!(&text(&memory), b"seve", "the PASID of the descriptor does not count");
    let mut status = [0];
    memory.get(RECORD, &mut status);
    assert_eq!((status, f.record(RECORD).status), ([1], 0), "its record is in its own space");
}

#[test]
fn of_a_shared_queue() {
    let mut f = fresh(Access::Trapped, Config::default());
    f.configure(0, 16, SHARED);
    f.enable(0);
    let memories = [(1, b"one."), (2, b"two."), (0xf_ffff, b"last")].map(|(pasid, text)| attach(&f, pasid, text));
    for pasid in [1, 2, 0xf_ffff, 3] {
        f.submit(0, 0, &copying(pasid));
    }
    f.bench.run();
    assert_eq!(memories.each_ref().map(|memory| text(memory)), [*b"one.", *b"two.", *b"last"]);
    assert_eq!((f.error() >> 8 & 0xff, f.error() >> 40), (0x1a, 3), "PASID 3 has nothing, not even a record");
    assert_eq!(f.command(command::ABORT_PASID, 1), 0);
}

/// Detaching a PASID is the end of its DMA.
#[test]
fn detached() {
    let mut f = fresh(Access::Trapped, Config::default());
    f.configure(0, 16, SHARED);
    f.enable(0);
    let memory = attach(&f, 1, b"gone");
    f.bench.endpoint.requester.attach_pasid(1, None);
    f.submit(0, 0, &copying(1));
    f.bench.run();
    assert_eq!(text(&memory), [0; 4]);
}
