// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames have a quick way, for buffers in one mapping, and a long one: what
//! comes of both is the same.

use device::virtio::feature as transport;
use iommu::Access;
use models::virtio::ring::Part;
use models::virtio::spec::net::feature;
use proptest::prelude::*;

use crate::net::{Rig, rig_with};
use crate::rings::part;

const MEMORY: u64 = 8 << 20;

/// What one way came to: frames, used buffers of both queues, statistics, bytes.
#[derive(Debug, PartialEq)]
struct Outcome {
    sent: Vec<(u16, Vec<u8>)>,
    used: [Vec<(u16, u32)>; 2],
    statistics: Vec<Option<Vec<(&'static str, u64)>>>,
    bytes: Vec<u8>,
}

/// A step: buffers to send from, room to receive into, frames that come.
type Step = (Vec<Vec<Part>>, Vec<Vec<Part>>, Vec<usize>);

fn run(mut rig: Rig, steps: &[Step]) -> Outcome {
    let pattern: Vec<u8> = (0..64 << 10).map(|i| (i % 251) as u8).collect();
    rig.bench.memory.set(rig.data, &pattern);
    let mut used = [Vec::new(), Vec::new()];
    for (send, room, come) in steps {
        for parts in room {
            let parts = place(rig.data + (32 << 10), parts);
            rig.rings[0].add(&[], &parts, None);
        }
        for parts in send {
            let parts = place(rig.data, parts);
            rig.rings[1].add(&parts, &[], None);
        }
        for len in come {
            let frame: Vec<u8> = std::iter::repeat_n(0, 12).chain((0..*len).map(|i| i as u8)).collect();
            rig.port.give(0, &frame);
        }
        rig.rings[0].publish();
        rig.rings[1].publish();
        rig.bench.run();
        for (used, ring) in used.iter_mut().zip(&mut rig.rings) {
            used.extend(std::iter::from_fn(|| ring.used()));
        }
    }
    let mut bytes = vec![0; 64 << 10];
    rig.bench.memory.get(rig.data, &mut bytes);
    let statistics = (0..2).map(|queue| rig.bench.endpoint.statistics(queue)).collect();
    Outcome { sent: rig.port.take(), used, statistics, bytes }
}

/// Parts among the data, or where nothing is mapped.
fn place(from: u64, parts: &[Part]) -> Vec<Part> {
    let at = |iova: u64| if iova >= MEMORY - 7 { iova } else { from + iova };
    parts.iter().map(|one| part(at(one.iova), one.len)).collect()
}

fn buffer(lens: std::ops::Range<u32>) -> impl Strategy<Value = Vec<Part>> {
    let plain = (0..30_000_u64, lens).prop_map(|(iova, len)| vec![part(iova, len)]);
    let odd = prop_oneof![Just(MEMORY - 7), Just(MEMORY), Just(u64::MAX - 3), 0..30_000_u64];
    let several = prop::collection::vec((odd, 0..200_u32).prop_map(|(iova, len)| part(iova, len)), 1..4);
    prop_oneof![20 => plain, 1 => several]
}

fn step() -> impl Strategy<Value = Step> {
    let send = prop::collection::vec(buffer(13..1500), 0..80);
    let room = prop::collection::vec(buffer(1000..2000), 0..80);
    (send, room, prop::collection::vec(prop_oneof![9 => 14..1000_usize, 1 => 14..5000_usize], 0..80))
}

#[test]
#[cfg(not(miri))]
fn both_ways_are_one() {
    let kinds = [0, transport::RING_PACKED, transport::EVENT_IDX];
    proptest!(ProptestConfig::with_cases(200), |(steps in prop::collection::vec(step(), 1..4),
        kind in 0..kinds.len(), legacy: bool, mergeable: bool)| {
        let mut wanted = kinds[kind];
        wanted |= if legacy { 0 } else { transport::VERSION_1 };
        wanted |= if mergeable { feature::MRG_RXBUF } else { 0 };
        let ways = [false, true].map(|long| {
            let rig = rig_with(1, wanted, false);
            if long {
                // Where accesses are counted there is no quick way.
                let dma = rig.bench.endpoint.requester(0).unwrap();
                dma.set_trap(Access::Read, u64::MAX, false, Box::new(|| ()));
            }
            run(rig, &steps)
        });
        prop_assert_eq!(&ways[0], &ways[1]);
    });
}
