// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random calls: nothing panics, and what must hold always holds.

use proptest::prelude::*;
use uapi::Errno;

use super::{MEMORY, Rig};

/// What a program may do to its device.
#[derive(Clone, Debug)]
enum Call {
    Read(u32, u64, u64),
    Write(u32, u64, Vec<u8>),
    Ioctl(u32, Vec<u32>),
    Fire,
    Pin(bool),
    Message(u16),
    Reopen,
}

fn position() -> impl Strategy<Value = u64> {
    prop_oneof![0..0x200_u64, 0..0x1100_u64, 0x1ff0..0x2090_u64, Just(u64::from(u32::MAX)), Just((1 << 40) - 1)]
}

/// A word of a structure: sizes, flags, indices, descriptors.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![0..48_u32, Just(u32::MAX), Just(0x2_0000), (0..13_u32).prop_map(|i| i | 1 << 17), any::<u32>()]
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        3 => (0..10_u32, position(), 0..80_u64).prop_map(|(i, p, l)| Call::Read(i, p, l)),
        6 => (position(), prop::collection::vec(any::<u8>(), 1..5)).prop_map(|(p, d)| Call::Write(7, p % 0x400, d)),
        3 => (0..10_u32, position(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(i, p, d)| Call::Write(i, p, d)),
        6 => (0x3b6b..0x3b7a_u32, prop::collection::vec(word(), 10)).prop_map(|(r, w)| Call::Ioctl(r, w)),
        4 => (0..6_u32, 0..40_u32, 0..10_u32, 0..10_u32, prop::collection::vec(0..9_u32, 8)).prop_map(|(index, flags, start, count, data)| {
            let mut words = vec![52, flags, index, start, count];
            words.extend(data);
            Call::Ioctl(0x3b6e, words)
        }),
        1 => Just(Call::Fire),
        1 => any::<bool>().prop_map(Call::Pin),
        1 => (0..12_u16).prop_map(Call::Message),
        1 => Just(Call::Reopen),
    ]
}

/// The rules that no sequence of calls may break.
fn check(rig: &mut Rig, physical: [u32; 7]) {
    let bars = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|at| rig.hw(at, 4));
    // API-241: the program never moves the hardware's BARs.
    assert_eq!(bars, physical);
    let shown = rig.cfg(0x10, 4);
    assert_eq!(shown & 0x3fff, 4, "{shown:x}");
    assert_eq!((rig.cfg(0x24, 4), rig.cfg(0x20, 4) & 0xf_ffff), (0, 8));
    // API-234, API-258
    assert_eq!(rig.cfg(0, 4), 0x0010_1b36);
    let msix = rig.cap(0x11);
    assert_eq!(rig.cfg(msix + 2, 2) & 0x7ff, 7);
    // API-216: what can be read can be touched, and the other way round.
    let pm = rig.cap(1);
    let open = rig.cfg(4, 2) & MEMORY != 0 && rig.hw(pm + 4, 2) & 3 == 0;
    let read = rig.pread(0, 0, 4);
    if rig.mapped() {
        assert!(open && read.is_ok());
    } else {
        assert_eq!(read, Err(Errno::EIO));
    }
    // API-255: action bits read 0.
    let express = rig.cap(0x10);
    assert_eq!(rig.cfg(express + 8, 2) & 0x8000, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 64 }, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_and_the_rules_hold(calls in prop::collection::vec(call(), 1..60)) {
        let mut rig = Rig::new();
        let physical = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|at| rig.hw(at, 4));
        for _ in 0..6 {
            rig.event();
        }
        for call in calls {
            match call {
                Call::Read(index, pos, len) => {
                    let offset = uapi::region::offset(0, index) + pos;
                    let buf = rig.lab.client.room(len);
                    let (file, (vfio, mut cx)) = (rig.file, rig.lab.parts());
                    let _ = vfio.read(file, offset, buf, len, &mut cx);
                }
                Call::Write(index, pos, data) => {
                    let offset = uapi::region::offset(0, index) + pos;
                    let buf = rig.lab.client.put_bytes(&data);
                    let (file, (vfio, mut cx)) = (rig.file, rig.lab.parts());
                    let _ = vfio.write(file, offset, buf, data.len() as u64, &mut cx);
                }
                Call::Ioctl(request, words) => {
                    let arg = rig.lab.client.put(words.as_slice());
                    let _ = rig.ioctl(request, arg);
                }
                Call::Fire => rig.fire(),
                Call::Pin(level) => rig.endpoint().interrupts.set_pin(level),
                Call::Message(vector) => rig.endpoint().interrupts.message(vector),
                Call::Reopen => {
                    rig.lab.release(rig.file);
                    assert_eq!(rig.watched(), 0);
                    assert!(!rig.mapped());
                    rig.file = rig.reopen();
                }
            }
            check(&mut rig, physical);
        }
        rig.lab.release(rig.file);
        prop_assert_eq!(rig.watched(), 0);
    }
}
