// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-vdpa: any request and message, in any order, on any parent.

use ::vdpa::testing::{AREA, Bench, PRIVATE, SHARED, program};
use ::vdpa::{OnReset, Parent, ParentSpec};
use arbitrary::Unstructured;
use uapi::vhost::{IotlbMsg, iotlb, request};
use zerocopy::IntoBytes;

use crate::wire::{Blob, Number, Wire, operations, seed, wire};

wire! {
    /// What a program may do with the node.
    enum Op {
        /// A request of vhost's, by its number's low byte, or any other.
        Request { number: u8, arg: Blob },
        Any { number: u32, arg: Number },
        Message { version: u8, asid: u8, kind: u8, iova: Number, size: Number, uaddr: Number, perm: u8 },
        Raw { bytes: Blob },
        Parts { bytes: Blob, at: u8 },
        Status { bits: u8 },
        Ack { bits: u16 },
        Ring { queue: u8, at: u16, ready: bool },
        Reopen {},
        Another {},
        Turn {},
    }
}

/// Requests with a low byte of these.
const REQUESTS: [u32; 40] = [
    request::GET_FEATURES,
    request::SET_FEATURES,
    request::SET_OWNER,
    request::RESET_OWNER,
    request::SET_MEM_TABLE,
    request::SET_LOG_BASE,
    request::SET_LOG_FD,
    request::SET_VRING_NUM,
    request::SET_VRING_ADDR,
    request::SET_VRING_BASE,
    request::GET_VRING_BASE,
    request::SET_VRING_KICK,
    request::SET_VRING_CALL,
    request::SET_VRING_ERR,
    request::SET_VRING_BUSYLOOP_TIMEOUT,
    request::GET_VRING_BUSYLOOP_TIMEOUT,
    request::SET_BACKEND_FEATURES,
    request::GET_BACKEND_FEATURES,
    request::VDPA_GET_DEVICE_ID,
    request::VDPA_GET_STATUS,
    request::VDPA_SET_STATUS,
    request::VDPA_GET_CONFIG,
    request::VDPA_SET_CONFIG,
    request::VDPA_SET_VRING_ENABLE,
    request::VDPA_GET_VRING_NUM,
    request::VDPA_SET_CONFIG_CALL,
    request::VDPA_GET_IOVA_RANGE,
    request::VDPA_GET_CONFIG_SIZE,
    request::VDPA_GET_AS_NUM,
    request::VDPA_GET_VRING_GROUP,
    request::VDPA_SET_GROUP_ASID,
    request::VDPA_SUSPEND,
    request::VDPA_RESUME,
    request::VDPA_GET_VRING_DESC_GROUP,
    request::VDPA_GET_VQS_COUNT,
    request::VDPA_GET_GROUP_NUM,
    request::VDPA_GET_VRING_SIZE,
    request::SET_FORK_FROM_OWNER,
    request::GET_FORK_FROM_OWNER,
    0x4008_af83,
];

/// A parent, its choice for resets, and few records so that they run out.
fn parent(settings: u8) -> ParentSpec {
    let parent = Parent::ALL.get(usize::from(settings & 7)).copied().unwrap_or_default();
    let on_reset =
        [OnReset::Negotiated, OnReset::Clean, OnReset::Keep, OnReset::MustAck][usize::from(settings >> 3 & 3)];
    let spec = ParentSpec { max_entries: 16, desc_group: settings & 0x20 != 0, ..parent.spec() };
    let chosen = ParentSpec { on_reset, ..spec.clone() };
    if chosen.check().is_ok() { chosen } else { spec }
}

/// The body of the target `vdpa`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let mut bench = Bench::owned(parent(settings));
    let first = bench.client.process;
    for op in operations(&mut u, 300) {
        step(&mut bench, &op);
        laws(&bench);
    }
    bench.vdpa.release(bench.file);
    assert_eq!(bench.accounts.pinned(first), 0, "pages stay pinned");
    assert!(bench.vdpa.records("dev", 0).is_none(), "records stay");
}

fn step(bench: &mut Bench, op: &Op) {
    match op {
        Op::Request { number, arg } => {
            let number = REQUESTS[usize::from(*number) % REQUESTS.len()];
            let mut bytes = arg.0.clone();
            bytes.resize(bytes.len().max(64), 0);
            let at = bench.client.put_bytes(&bytes);
            let _ = bench.ioctl(number, at);
        }
        Op::Any { number, arg } => {
            let _ = bench.ioctl(*number, arg.value());
        }
        Op::Message { version, asid, kind, iova, size, uaddr, perm } => {
            let near = |n: u64, base: u64| if n < AREA { base + n } else { n };
            let uaddr = near(uaddr.value(), if perm & 0x80 == 0 { SHARED } else { PRIVATE });
            let body =
                IotlbMsg { iova: iova.value(), size: size.value(), uaddr, perm: perm & 7, kind: *kind, pad: [0; 6] };
            let mut bytes = [&u32::from(*version).to_le_bytes()[..], &u32::from(*asid).to_le_bytes()].concat();
            bytes.extend_from_slice(body.as_bytes());
            let _ = bench.write(&bytes);
        }
        Op::Raw { bytes } => {
            let _ = bench.write(&bytes.0);
        }
        Op::Parts { bytes, at } => {
            let (address, len) = (bench.client.put_bytes(&bytes.0), bytes.0.len() as u64);
            let cut = u64::from(*at).min(len);
            let parts = [(address, cut), (address + cut, len - cut), (u64::from(*at), 1)];
            let _ = bench.vdpa.write(bench.file, &parts, &bench.client);
        }
        Op::Status { bits } => {
            let _ = bench.set_status(*bits);
        }
        Op::Ack { bits } => {
            let _ = bench.set(request::SET_BACKEND_FEATURES, u64::from(*bits));
        }
        Op::Ring { queue, at, ready } => {
            let _ = bench.ring(request::SET_VRING_NUM, u32::from(*queue), 16);
            let iova = u64::from(*at) & !3;
            let addr = uapi::vhost::VringAddr {
                index: u32::from(*queue),
                desc: iova,
                avail: iova + 0x100,
                used: iova + 0x200,
                ..Default::default()
            };
            let _ = bench.set(request::SET_VRING_ADDR, addr);
            let _ = bench.ring(request::VDPA_SET_VRING_ENABLE, u32::from(*queue), u32::from(*ready));
        }
        Op::Reopen {} => {
            bench.reopen();
            let _ = bench.ioctl(request::SET_OWNER, 0);
        }
        Op::Another {} => bench.client = program(bench.client.process.0 % 2 + 1),
        Op::Turn {} => {
            for _ in 0..16 {
                let _ = device::Steppable::turn(&*bench.endpoint, 0);
            }
        }
    }
}

/// Records are few, in order, and do not overlap.
fn laws(bench: &Bench) {
    for asid in 0..2 {
        let Some(records) = bench.records(asid) else { continue };
        assert!(records.len() <= 16, "too many records");
        assert!(records.iter().all(|(first, last)| first <= last));
        assert!(records.windows(2).all(|pair| pair[0].1 < pair[1].0), "records overlap");
    }
    let _ = bench.vdpa.explain("dev");
}

/// Seeds, named after what they are about.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let message = |kind: u8, iova: u64, size: u64| Op::Message {
        version: 2,
        asid: 0,
        kind,
        iova: Number::of(iova),
        size: Number::of(size),
        uaddr: Number::of(iova % AREA),
        perm: iotlb::RW,
    };
    let map = |iova| message(iotlb::UPDATE, iova, 0x2000);
    let mut all = Vec::new();
    for (name, settings) in [("sim", 0u8), ("dma", 1), ("pinned", 2), ("platform", 3), ("stale", 4)] {
        let ops = [
            map(0),
            map(0x1000),
            Op::Ring { queue: 0, at: 0x400, ready: true },
            Op::Status { bits: 4 },
            Op::Turn {},
            message(iotlb::INVALIDATE, 0, 0),
            Op::Turn {},
            Op::Status { bits: 0 },
            map(0x8000),
            Op::Reopen {},
            map(0),
        ];
        all.push((name, seed(&settings, &ops)));
    }
    let batch = [
        message(iotlb::BATCH_BEGIN, 0, 0),
        map(0),
        message(iotlb::INVALIDATE, 0x1000, 0),
        Op::Status { bits: 0 },
        map(0x10000),
        message(iotlb::BATCH_END, 0, 0),
        Op::Ack { bits: 0x108 },
        Op::Another {},
        map(0x20000),
    ];
    all.push(("batch", seed(&0u8, &batch)));
    all
}
