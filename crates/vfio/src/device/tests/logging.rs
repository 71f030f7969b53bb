// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA logging (vfio-migration.md, section 7).

use ::device::migration::{Failure, Migration};
use iommu::Access;
use uapi::Errno;
use uapi::vfio::device as request;
use uapi::vfio::migration::{LoggingControl, LoggingRange, LoggingReport};
use zerocopy::{FromBytes, IntoBytes};

use super::Rig;
use super::migration::{GET, SET, feature, rig};

const PAGE: u64 = 4096;

fn start(rig: &mut Rig, page_size: u64, ranges: &[(u64, u64)]) -> Result<u64, Errno> {
    let list: Vec<LoggingRange> =
        ranges.iter().map(|(iova, length)| LoggingRange { iova: *iova, length: *length }).collect();
    let at = rig.lab.client.put_bytes(list.as_bytes());
    start_at(rig, page_size, ranges.len() as u32, at)
}

fn start_at(rig: &mut Rig, page_size: u64, num_ranges: u32, ranges: u64) -> Result<u64, Errno> {
    let control = LoggingControl { page_size, num_ranges, reserved: 0xdead, ranges };
    let after = feature(rig, SET | 6, control.as_bytes()).map_err(|(errno, _)| errno)?;
    Ok(LoggingControl::read_from_bytes(&after).unwrap().page_size)
}

fn stop(rig: &mut Rig) -> Result<(), Errno> {
    feature(rig, SET | 7, &[]).map(drop).map_err(|(errno, _)| errno)
}

fn ask(rig: &mut Rig, iova: u64, length: u64, page_size: u64, bitmap: u64) -> Result<(), Errno> {
    let report = LoggingReport { iova, length, page_size, bitmap };
    feature(rig, GET | 8, report.as_bytes()).map(drop).map_err(|(errno, _)| errno)
}

/// The bits of a report; the buffer was filled with `before`.
fn report(rig: &mut Rig, iova: u64, length: u64, page_size: u64, before: u8) -> Vec<u64> {
    let words = length.div_ceil(page_size).div_ceil(64);
    let at = rig.lab.client.put_bytes(&vec![before; words as usize * 8]);
    ask(rig, iova, length, page_size, at).unwrap();
    let bytes = rig.lab.client.get_bytes(at, words as usize * 8);
    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// A device with 1 MiB of memory mapped at this IOVA.
fn mapped(iova: u64) -> Rig {
    let mut rig = rig(Migration::default());
    let room = rig.lab.client.room(1 << 20);
    let map = uapi::vfio::type1::DmaMap { argsz: 32, flags: 3, vaddr: room, iova, size: 1 << 20 };
    let arg = rig.lab.client.put(&map);
    rig.lab.ioctl(rig.container, uapi::vfio::type1::MAP_DMA, arg).unwrap();
    rig
}

/// The device writes a byte there.
fn dma(rig: &Rig, iova: u64) {
    rig.endpoint().requester.session().write(iova, &[1]).unwrap();
}

/// MIG-051, MIG-052, MIG-053, MIG-054, MIG-055, MIG-056
#[test]
fn start_checks_in_order() {
    let mut rig = rig(Migration::default());
    let control = LoggingControl { page_size: PAGE, num_ranges: 1, reserved: 0, ranges: 0 };
    assert_eq!(feature(&mut rig, SET | 6, &control.as_bytes()[..23]).unwrap_err().0, Errno::EINVAL);
    assert_eq!(feature(&mut rig, GET | 6, control.as_bytes()).unwrap_err().0, Errno::EINVAL);
    assert_eq!(start_at(&mut rig, PAGE, 0, 8), Err(Errno::EINVAL));
    assert_eq!(start_at(&mut rig, PAGE, 257, 8), Err(Errno::E2BIG));
    assert_eq!(start_at(&mut rig, PAGE, 1, 8), Err(Errno::EFAULT));
    for (ranges, errno) in [
        (&[(1, PAGE)][..], Errno::EINVAL),
        (&[(0, 5)], Errno::EINVAL),
        (&[(PAGE.wrapping_neg(), 2 * PAGE)], Errno::EOVERFLOW),
        (&[(PAGE.wrapping_neg(), PAGE)], Errno::EOVERFLOW),
        (&[(0, 2 * PAGE), (PAGE, PAGE)], Errno::EINVAL),
        (&[(0, PAGE), (1, 5)], Errno::EINVAL),
    ] {
        assert_eq!(start(&mut rig, PAGE, ranges), Err(errno), "{ranges:?}");
    }
    // A hint: any number, and what is used comes back.
    for (hint, used) in [(0, PAGE), (1, PAGE), (PAGE, PAGE), (3 * PAGE, 2 * PAGE), (1 << 40, 1 << 30)] {
        assert_eq!(start(&mut rig, hint, &[(0, 0)]), Ok(used), "{hint}");
        assert_eq!(start(&mut rig, hint, &[(0, 0)]), Err(Errno::EINVAL), "on already");
        assert_eq!(start(&mut rig, PAGE, &[(1, 0)]), Err(Errno::EINVAL));
        stop(&mut rig).unwrap();
    }
    let many: Vec<(u64, u64)> = (0..256).map(|n| (n * 2 * PAGE, PAGE)).collect();
    assert_eq!(start(&mut rig, PAGE, &many), Ok(PAGE));
    // MIG-059
    assert_eq!((stop(&mut rig), stop(&mut rig)), (Ok(()), Ok(())));
    assert_eq!(feature(&mut rig, GET | 7, &[]).unwrap_err().0, Errno::EINVAL);
    let mut without = self::rig(Migration { dma_logging: false, ..Migration::default() });
    for (flags, bytes) in [(SET | 6, 24), (SET | 7, 0), (GET | 8, 32)] {
        assert_eq!(feature(&mut without, flags, &vec![0; bytes]).unwrap_err().0, Errno::ENOTTY);
    }
}

/// MIG-058, MIG-060, MIG-061, MIG-062, MIG-063, MIG-065, MIG-069, MIG-071: bits
/// count from the report's IOVA, are only set, and are given once.
#[test]
fn a_report_is_given_once() {
    const IOVA: u64 = 0x10_0000;
    let mut rig = mapped(IOVA);
    dma(&rig, IOVA);
    assert_eq!(ask(&mut rig, IOVA, PAGE, PAGE, 0), Err(Errno::EFAULT));
    let at = rig.lab.client.room(8);
    assert_eq!(ask(&mut rig, IOVA, PAGE, PAGE, at), Err(Errno::EINVAL), "not on");
    assert_eq!(start(&mut rig, PAGE, &[(IOVA, 1 << 19)]), Ok(PAGE));
    for n in [0, 1, 64, 100, 200] {
        dma(&rig, IOVA + n * PAGE + 17);
    }
    let mut buf = [0; 4];
    rig.endpoint().requester.session().read(IOVA + 5 * PAGE, &mut buf).unwrap();
    for (page_size, errno) in [(2048, Errno::EINVAL), (3 * PAGE, Errno::EINVAL), (0, Errno::EINVAL)] {
        assert_eq!(ask(&mut rig, IOVA, PAGE, page_size, at), Err(errno));
    }
    assert_eq!(ask(&mut rig, PAGE.wrapping_neg(), PAGE, PAGE, at), Err(Errno::EOVERFLOW));
    assert_eq!(ask(&mut rig, IOVA, 0, PAGE, at), Err(Errno::EINVAL), "MIG-068");
    let iova = IOVA - PAGE;
    assert_eq!(report(&mut rig, iova, 1 << 20, PAGE, 0), [6, 1 << 1 | 1 << 37, 0, 0], "page 200 is in no range");
    assert_eq!(report(&mut rig, iova, 1 << 20, PAGE, 0), [0; 4]);
    assert_eq!(report(&mut rig, iova, 1 << 20, PAGE, 0x80), [0x8080_8080_8080_8080; 4], "never cleared");
    dma(&rig, IOVA + 3 * PAGE);
    assert_eq!(report(&mut rig, IOVA, 1 << 18, PAGE, 0), [8], "logging goes on");
}

/// MIG-064: the tracker's pages and the report's need not be alike.
#[test]
fn pages_of_another_size() {
    let mut rig = mapped(0);
    start(&mut rig, PAGE, &[(0, 1 << 20)]).unwrap();
    dma(&rig, 5 * PAGE);
    dma(&rig, 6 * PAGE);
    assert_eq!(report(&mut rig, 0, 1 << 20, 4 * PAGE, 0), [2], "they fold");
    stop(&mut rig).unwrap();
    start(&mut rig, 4 * PAGE, &[(0, 1 << 20)]).unwrap();
    dma(&rig, 5 * PAGE);
    assert_eq!(report(&mut rig, 0, 1 << 18, PAGE, 0), [0xf0], "they spread");
}

/// Memory that its program may not write.
fn read_only(rig: &Rig, at: u64, bytes: &[u8]) -> u64 {
    rig.lab.client.memory.map(at, PAGE, false);
    rig.lab.client.memory.store(at, bytes);
    at
}

/// MIG-057, MIG-066: where the caller's memory is not there.
#[test]
fn memory_that_is_not_there() {
    let mut rig = mapped(0);
    let ranges = rig.lab.client.put_bytes(LoggingRange { iova: 0, length: 1 << 20 }.as_bytes());
    let control = LoggingControl { page_size: PAGE, num_ranges: 1, reserved: 0, ranges };
    let arg = read_only(&rig, 0x7000_0000, &[[32, SET | 6].as_bytes(), control.as_bytes()].concat());
    assert_eq!(rig.ioctl(request::FEATURE, arg), Err(Errno::EFAULT));
    assert_eq!(start(&mut rig, PAGE, &[(0, 1 << 20)]), Ok(PAGE), "it was stopped again");
    dma(&rig, 0);
    let bitmap = read_only(&rig, 0x7100_0000, &[0; 32]);
    assert_eq!(ask(&mut rig, 0, 1 << 20, PAGE, bitmap), Err(Errno::EFAULT));
    let unaligned = rig.lab.client.put_bytes(&[0; 40]) + 3;
    ask(&mut rig, 0, 1 << 20, PAGE, unaligned).unwrap();
    assert_eq!(rig.lab.client.get_bytes(unaligned, 2), [1, 0]);
}

/// MIG-067: the tracker has lost count; the user is to take all for dirty.
#[test]
fn the_tracker_has_lost_count() {
    let mut rig = rig(Migration { failures: vec![Failure::LoggingLost], ..Migration::default() });
    start(&mut rig, PAGE, &[(0, 1 << 20)]).unwrap();
    let at = rig.lab.client.room(8);
    assert_eq!(ask(&mut rig, 0, 1 << 18, PAGE, at), Err(Errno::EIO));
    assert_eq!(stop(&mut rig), Ok(()));
}

/// MIG-070, MIG-075: a reset does not end logging, the last close does.
#[test]
fn reset_and_close() {
    let mut rig = mapped(0);
    start(&mut rig, PAGE, &[(0, 1 << 20)]).unwrap();
    rig.ioctl(request::RESET, 0).unwrap();
    dma(&rig, 0);
    assert_eq!(report(&mut rig, 0, 1 << 18, PAGE, 0), [1]);
    rig.lab.release(rig.file);
    rig.file = rig.reopen();
    let at = rig.lab.client.room(8);
    assert_eq!(ask(&mut rig, 0, 1 << 18, PAGE, at), Err(Errno::EINVAL));
    let session = rig.endpoint().requester.clone();
    assert!(session.session().translate(0, Access::Write).is_err(), "bus mastering is off");
}
