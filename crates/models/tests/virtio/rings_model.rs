// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any sequence of steps of a driver and a device against a model: buffers in
//! a row, of which some are added, some published, some used.

use std::collections::VecDeque;

use device::virtio::feature::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED};
use models::testing::TestMemory;
use models::testing::virtio::DriverRing;
use models::virtio::ring::{Batch, Part, Ring};
use proptest::prelude::*;

use crate::rings::{part, start, wire};

#[derive(Clone, Debug)]
enum Step {
    /// The driver adds a buffer of so many parts.
    Add {
        read: Vec<u32>,
        write: Vec<u32>,
        table: bool,
    },
    Publish,
    /// The device looks at up to so many, and uses some of them.
    Work {
        look: usize,
        take: usize,
    },
    /// The driver takes what is used.
    Collect,
    /// The device begins anew at its base.
    Restart,
    WantEvents(bool),
    Listen,
    Hush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = || proptest::collection::vec(0..5000_u32, 0..4);
    let step = prop_oneof![
        4 => (lens(), lens(), any::<bool>()).prop_map(|(read, write, table)| Step::Add { read, write, table }),
        3 => Just(Step::Publish),
        4 => (1..70_usize, 0..70_usize).prop_map(|(look, take)| Step::Work { look, take }),
        3 => Just(Step::Collect),
        1 => Just(Step::Restart),
        1 => any::<bool>().prop_map(Step::WantEvents),
        1 => Just(Step::Listen),
        1 => Just(Step::Hush),
    ];
    proptest::collection::vec(step, 1..200)
}

#[derive(Clone, Debug)]
struct Buffer {
    id: u16,
    read: Vec<Part>,
    write: Vec<Part>,
    written: u32,
}

fn run(features: u64, size: u16, remote: bool, piece: u64, steps: &[Step]) {
    let memory = TestMemory::new(1 << 18, remote);
    let (requester, _space) = wire(&memory, piece);
    let mut driver = DriverRing::new(memory, 0x100, size, features, start(features));
    let mut setup = *driver.setup();
    let mut ring = Ring::new(&setup).unwrap();
    let tables = driver.after().next_multiple_of(4096);
    let (mut added, mut published, mut used) = (VecDeque::new(), VecDeque::new(), VecDeque::<Buffer>::new());
    let mut batch = Batch::default();
    let (mut number, mut wants, mut listens) = (0, true, false);
    for step in steps {
        let mut session = requester.session();
        match step {
            Step::Add { read, write, table } => {
                let parts = |lens: &[u32]| -> Vec<Part> {
                    lens.iter().map(|len| part(0x1_0000 + u64::from(*len), *len)).collect()
                };
                let (read, write) = (parts(read), parts(write));
                // More tables than there can be buffers.
                let table = table.then_some(tables + number % 256 * 128);
                if read.is_empty() && write.is_empty() {
                    continue;
                }
                if let Some(id) = driver.add(&read, &write, table) {
                    added.push_back(Buffer { id, read, write, written: 0 });
                    number += 1;
                }
            }
            Step::Publish => {
                let had = !added.is_empty();
                published.append(&mut added);
                let kick = driver.publish();
                assert!(!(listens && had) || kick, "a kick was asked for");
                listens &= !had;
            }
            Step::Work { look, take } => {
                ring.fetch(&mut session, &mut batch, *look).unwrap();
                assert_eq!(batch.chains().len(), published.len().min(*look).min(64));
                for (chain, buffer) in batch.chains().iter().zip(&published) {
                    assert_eq!((batch.readable(chain), batch.writable(chain)), (&buffer.read[..], &buffer.write[..]));
                }
                let take = batch.chains().len().min(*take);
                let written: Vec<u32> = batch
                    .chains()
                    .iter()
                    .zip(0..take as u32)
                    .map(|(chain, i)| if batch.writable(chain).is_empty() { 0 } else { i * 3 })
                    .collect();
                let told = ring.complete(&mut session, &batch, &written).unwrap();
                if take > 0 && used.is_empty() && wants {
                    assert!(told, "an event was asked for");
                }
                if take > 0 {
                    listens = false;
                }
                for written in written {
                    let mut buffer = published.pop_front().unwrap();
                    buffer.written = written;
                    used.push_back(buffer);
                }
            }
            Step::Collect => {
                for buffer in used.drain(..) {
                    assert_eq!(driver.used(), Some((buffer.id, buffer.written)));
                }
                assert_eq!(driver.used(), None);
                driver.want_events(wants);
            }
            Step::Restart => {
                setup.base = ring.base();
                ring = Ring::new(&setup).unwrap();
                listens = false;
            }
            Step::WantEvents(on) => {
                wants = *on;
                // A driver asks when it has taken all that is used.
                if used.is_empty() {
                    driver.want_events(wants);
                } else {
                    wants = false;
                }
            }
            Step::Listen => {
                assert_eq!(ring.listen(&mut session).unwrap(), !published.is_empty());
                listens = published.is_empty() && added.is_empty();
            }
            Step::Hush => {
                ring.hush(&mut session).unwrap();
                listens = false;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// VDPA-6.3: whatever happens, buffers go through in order and the base is
    /// the number of those used.
    #[test]
    fn any_steps_of_driver_and_device(
        packed in any::<bool>(),
        event in any::<bool>(),
        in_order in any::<bool>(),
        size in 1..8_u32,
        (remote, piece) in prop_oneof![Just((false, 1_u64 << 18)), Just((false, 4096)), Just((true, 1 << 18))],
        steps in steps(),
    ) {
        let features = INDIRECT_DESC
            | if packed { RING_PACKED } else { 0 }
            | if event { EVENT_IDX } else { 0 }
            | if in_order { IN_ORDER } else { 0 };
        // Packed rings have any size.
        let size = if packed { (1_u16 << size) - 1 } else { 1 << size };
        run(features, size, remote, piece, &steps);
    }
}
