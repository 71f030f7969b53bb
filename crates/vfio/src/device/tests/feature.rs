// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_FEATURE: API-193 to API-207.

use uapi::Errno;
use uapi::vfio::device::{DmaRange, FEATURE, Feature, RESET};
use zerocopy::IntoBytes;

use super::{MEMORY, Rig, spec};
use crate::Options;
use crate::testing::Asked;

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;

fn feature(rig: &mut Rig, flags: u32, data: &[u8]) -> Result<u64, Errno> {
    let head = Feature { argsz: 8 + data.len() as u32, flags };
    let arg = rig.lab.client.put_bytes(&[head.as_bytes(), data].concat());
    rig.ioctl(FEATURE, arg)
}

/// API-193, API-195, API-196
#[test]
fn dispatch() {
    let mut rig = Rig::new();
    assert_eq!(rig.ioctl(FEATURE, 0), Err(Errno::EFAULT));
    let short = rig.lab.client.put(&[7_u32, SET | 3]);
    assert_eq!(rig.ioctl(FEATURE, short), Err(Errno::EINVAL));
    for flags in [SET | 3 | 1 << 19, GET | SET | 3, GET | SET | 99] {
        assert_eq!(feature(&mut rig, flags, &[0; 64]), Err(Errno::EINVAL), "{flags:x}");
    }
    for index in [1, 2, 6, 7, 8, 9, 10, 13, 99, 0xffff] {
        for flags in [PROBE, PROBE | GET, PROBE | SET, SET, GET, PROBE | GET | SET] {
            assert_eq!(feature(&mut rig, flags | index, &[0; 64]), Err(Errno::ENOTTY), "{index} {flags:x}");
        }
    }
    for flags in [PROBE, PROBE | SET, SET] {
        assert_eq!(feature(&mut rig, flags | 12, &[]), Err(Errno::EINVAL));
    }
}

/// API-194
#[test]
fn common_check() {
    let mut rig = Rig::with(pci::FunctionSpec { total_vfs: 2, ..spec() }, Options::default());
    // index, offered operation, other one, bytes of data
    for (index, yes, no, size) in
        [(0, SET, GET, 16), (3, SET, GET, 0), (4, SET, GET, 8), (5, SET, GET, 0), (11, GET, SET, 16)]
    {
        assert_eq!(feature(&mut rig, PROBE | index, &[]), Ok(0));
        assert_eq!(feature(&mut rig, PROBE | yes | index, &[]), Ok(0));
        assert_eq!(feature(&mut rig, PROBE | no | index, &[]), Err(Errno::EINVAL));
        assert_eq!(feature(&mut rig, PROBE | GET | SET | index, &[]), Err(Errno::EINVAL));
        assert_eq!(feature(&mut rig, no | index, &[0; 64]), Err(Errno::EINVAL));
        assert_eq!(feature(&mut rig, index, &[0; 64]), Err(Errno::EINVAL), "neither");
        if size > 0 {
            assert_eq!(feature(&mut rig, yes | index, &vec![0; size - 1]), Err(Errno::EINVAL), "{index}");
        }
    }
}

/// API-193, API-194: only what belongs to the request has to be there.
#[test]
fn structures_at_the_edge_of_what_is_mapped() {
    const EDGE: u64 = 0x7000_1000;
    let mut rig = Rig::with(pci::FunctionSpec { total_vfs: 2, ..spec() }, Options::default());
    rig.lab.client.memory.map(EDGE - 4096, 4096, true);
    let token = |rig: &mut Rig, arg: u64| {
        rig.lab.client.memory.store(arg, Feature { argsz: 24, flags: SET }.as_bytes());
        rig.ioctl(FEATURE, arg)
    };
    assert_eq!(token(&mut rig, EDGE - 24), Ok(0));
    assert_eq!(token(&mut rig, EDGE - 23), Err(Errno::EFAULT));
    assert_eq!(token(&mut rig, EDGE - 8), Err(Errno::EFAULT));
    rig.lab.client.memory.store(EDGE - 8, Feature { argsz: 8, flags: PROBE | SET }.as_bytes());
    assert_eq!(rig.ioctl(FEATURE, EDGE - 8), Ok(0));
    rig.lab.client.memory.map(EDGE, 4096, true);
    for before in [8, 9, 23] {
        assert_eq!(token(&mut rig, EDGE - before), Ok(0), "in both pages");
    }
}

/// API-199, API-201, API-204, API-205
#[test]
fn low_power() {
    let mut rig = Rig::new();
    assert_eq!(feature(&mut rig, SET | 5, &[]), Ok(0), "not entered");
    assert_eq!(feature(&mut rig, SET | 3, &[]), Ok(0));
    assert!(!rig.mapped());
    assert_eq!(rig.hw(rig_pm(&rig) + 4, 2) & 3, 3, "powered down");
    assert_eq!(rig.cfg(0, 4), 0x0010_1b36, "awake for an access");
    assert_eq!(rig.hw(rig_pm(&rig) + 4, 2) & 3, 3);
    assert_eq!(rig.pread(0, 0, 4), Err(Errno::EIO));
    assert_eq!(feature(&mut rig, SET | 3, &[]), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(RESET, 0), Ok(0));
    assert_eq!(feature(&mut rig, SET | 3, &[]), Err(Errno::EINVAL), "RESET does not leave it");
    assert_eq!(feature(&mut rig, SET | 5, &[]), Ok(0));
    assert!(rig.mapped());
    assert_eq!(rig.hw(4, 2) & MEMORY, MEMORY, "restored");
    assert_eq!(rig.pread(0, 0, 4).map(|b| b.len()), Ok(4));
}

fn rig_pm(rig: &Rig) -> u16 {
    rig.lab.board.fabric.function(super::ADDRESS).unwrap().capability(1).unwrap()
}

/// API-199: unless the module option keeps it awake.
#[test]
fn low_power_without_idle_d3() {
    let mut rig = Rig::with(spec(), Options { disable_idle_d3: true, ..Options::default() });
    assert_eq!(feature(&mut rig, SET | 3, &[]), Ok(0));
    assert_eq!(rig.hw(rig_pm(&rig) + 4, 2) & 3, 0);
    assert!(!rig.mapped());
}

/// API-200, API-203
#[test]
fn wake_up_is_told() {
    let mut rig = Rig::new();
    let (fd, woken) = rig.event();
    let foreign = rig.lab.client.foreign_fd();
    let enter = |rig: &mut Rig, fd: i32| feature(rig, SET | 4, &[fd.to_le_bytes(), [0; 4]].concat());
    assert_eq!(enter(&mut rig, -1), Err(Errno::EINVAL));
    assert_eq!(enter(&mut rig, 999), Err(Errno::EBADF));
    assert_eq!(enter(&mut rig, foreign), Err(Errno::EINVAL));
    assert_eq!(enter(&mut rig, fd), Ok(0));
    assert_eq!(woken.take(), 0);
    rig.cfg(0, 4);
    assert_eq!(woken.take(), 1);
    assert_eq!(rig.pread(0, 0, 4).map(|b| b.len()), Ok(4), "left by itself");
    assert_eq!(woken.take(), 0);
    assert_eq!(feature(&mut rig, SET | 3, &[]), Ok(0));
    assert_eq!(enter(&mut rig, fd), Err(Errno::EINVAL), "entered already");
    assert_eq!(enter(&mut rig, 999), Err(Errno::EBADF), "the descriptor comes first");
}

/// API-270: the close leaves low power without a word.
#[test]
fn closing_tells_no_wake_up() {
    let mut rig = Rig::new();
    let (fd, woken) = rig.event();
    feature(&mut rig, SET | 4, &[fd.to_le_bytes(), [0; 4]].concat()).unwrap();
    rig.lab.release(rig.file);
    assert_eq!((woken.take(), std::sync::Arc::strong_count(&woken)), (0, 2));
    assert_eq!(rig.hw(rig_pm(&rig) + 4, 2) & 3, 0);
    rig.file = rig.reopen();
    assert_eq!(rig.pread(0, 0, 4).map(|b| b.len()), Ok(4));
}

/// API-202
#[test]
fn intx_is_masked_while_suspended() {
    let mut rig = Rig::new();
    let (fd, event) = rig.event();
    rig.bind_fds(0, 0, &[fd]).unwrap();
    feature(&mut rig, SET | 3, &[]).unwrap();
    rig.endpoint().interrupts.set_pin(true);
    assert_eq!(event.take(), 0);
    feature(&mut rig, SET | 5, &[]).unwrap();
    // The device was reset on its way back from D3hot, the pin with it.
    rig.endpoint().interrupts.set_pin(true);
    assert_eq!(event.take(), 1);
    // Masked by the program: it stays masked.
    feature(&mut rig, SET | 3, &[]).unwrap();
    feature(&mut rig, SET | 5, &[]).unwrap();
    rig.endpoint().interrupts.set_pin(true);
    assert_eq!(event.take(), 0);
}

/// API-199: a reset on the way is seen by the model.
#[test]
fn powering_down_resets_where_d3_does() {
    let mut rig = Rig::new();
    rig.asked();
    feature(&mut rig, SET | 3, &[]).unwrap();
    feature(&mut rig, SET | 5, &[]).unwrap();
    assert!(rig.asked().contains(&Asked::Reset(::device::ResetKind::PowerManagement)));
}

/// API-206, API-207
#[test]
fn dma_buf_checks() {
    let mut rig = Rig::new();
    let ask = |rig: &mut Rig, bar: u32, flags: u32, ranges: &[DmaRange]| {
        let head = [bar, 2, flags, ranges.len() as u32];
        feature(rig, GET | 11, &[head.as_bytes(), ranges.as_bytes()].concat())
    };
    let page = DmaRange { offset: 0, length: 4096 };
    assert_eq!(ask(&mut rig, 0, 0, &[]), Err(Errno::EINVAL));
    assert_eq!(ask(&mut rig, 0, 1, &[page]), Err(Errno::EINVAL));
    for bar in [1, 5, 6, 7, 99] {
        assert_eq!(ask(&mut rig, bar, 0, &[page]), Err(Errno::ENODEV), "{bar}");
    }
    assert_eq!(feature(&mut rig, GET | 11, [0, 0, 0, u32::MAX].as_bytes()), Err(Errno::ENOMEM));
    // The whole list is copied before any of it is looked at.
    let zero = DmaRange { offset: 0, length: 0 };
    let head = [0, 2, 0, 0x3_0000_u32];
    assert_eq!(feature(&mut rig, GET | 11, &[head.as_bytes(), zero.as_bytes()].concat()), Err(Errno::EFAULT));
    let wrap = DmaRange { offset: u64::MAX - 4095, length: 8192 };
    assert_eq!(ask(&mut rig, 0, 0, &[page, wrap]), Err(Errno::EOVERFLOW));
    for bad in [
        DmaRange { length: 0, ..page },
        DmaRange { offset: 1, ..page },
        DmaRange { length: 5, ..page },
        DmaRange { offset: 0x4000, ..page },
    ] {
        assert_eq!(ask(&mut rig, 0, 0, &[bad]), Err(Errno::EINVAL));
    }
    // The whole list is checked by itself before the BAR is.
    assert_eq!(ask(&mut rig, 0, 0, &[wrap, DmaRange { offset: 1, ..page }]), Err(Errno::EINVAL));
    let half = DmaRange { offset: 0, length: 1 << 63 };
    assert_eq!(ask(&mut rig, 0, 0, &[half, half]), Err(Errno::EINVAL), "the sum overflows");
    assert_eq!(ask(&mut rig, 2, 0, &[page]), Err(Errno::EINVAL), "ports have no peer-to-peer provider");
    assert!(ask(&mut rig, 0, 0, &[page, page]).is_ok());
}
