// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Automatic IOVAs (IOMMUFD-5.4, IOMMUFD-5.5).

use caller::testing::MemFile;
use uapi::Errno;
use uapi::iommufd::{IoasAllowIovas, IoasMapFile, IovaRange};
use zerocopy::IntoBytes;

use super::{FIXED, PAGE, RAM, RW, lab};
use crate::testing::{Lab, domain};

const HUGE: u64 = 2 << 20;

fn allow(lab: &mut Lab, ioas: u32, ranges: &[(u64, u64)]) {
    let ranges: Vec<IovaRange> = ranges.iter().map(|(start, last)| IovaRange { start: *start, last: *last }).collect();
    let allowed_iovas = lab.client.put(ranges.as_bytes());
    let num_iovas = ranges.len() as u32;
    lab.run(IoasAllowIovas { ioas_id: ioas, num_iovas, allowed_iovas, ..IoasAllowIovas::default() }).unwrap();
}

/// IOMMUFD-5.4
#[test]
fn the_lowest_hole_wins() {
    let (mut lab, ioas) = lab();
    let mut auto = |va, length| lab.map(ioas, RW, va, length, 12345);
    assert_eq!(auto(RAM, PAGE), Ok(PAGE), "never 0, and the given IOVA is not looked at");
    assert_eq!(auto(RAM, PAGE), Ok(2 * PAGE));
    assert_eq!(auto(RAM, 2 * PAGE), Ok(4 * PAGE), "aligned to its length");
    assert_eq!(auto(RAM + PAGE, 2 * PAGE), Ok(6 * PAGE), "but to no more than its address");
    assert_eq!(auto(RAM, PAGE), Ok(3 * PAGE), "the hole");
    assert_eq!(auto(0, 3 * HUGE), Ok(HUGE), "and to no more than a large page");
    assert_eq!(auto(RAM + 0x123, 16), Ok(8 * PAGE + 0x123), "with the offset in the page");
    assert_eq!(auto(RAM, 1 << 63), Err(Errno::EOVERFLOW));
    assert_eq!(auto(0, u64::MAX / 2), Err(Errno::EOVERFLOW));
    assert_eq!(auto(0, u64::MAX / 2 - 1).map(|_| ()), Ok(()));
    assert_eq!(lab.unmap(ioas, 2 * PAGE, PAGE), Ok(PAGE));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(2 * PAGE));
}

/// IOMMUFD-5.4, SELF-6.9: what would not be aligned enough is refused.
#[test]
fn alignment_of_the_ioas() {
    let (mut lab, ioas) = lab();
    let mut half_pages = domain();
    half_pages.page_sizes = 1 << 11;
    lab.add_domain(1000, ioas, &half_pages).unwrap();
    for length in 1..8192 {
        let expected = if length % 2048 == 0 { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(lab.map(ioas, RW, RAM, length, 0).map(|_| ()), expected, "{length}");
    }
    assert_eq!(lab.map(ioas, RW, RAM + 1024, 2048, 0), Err(Errno::EINVAL));
    let iova = lab.map(ioas, RW, RAM + 2048, 2048, 0).unwrap();
    assert_eq!(iova % PAGE, 2048);
}

/// IOMMUFD-5.4, IOMMUFD-4.8, SELF-6.7
#[test]
fn allowed_and_reserved() {
    let (mut lab, ioas) = lab();
    allow(&mut lab, ioas, &[(100 * PAGE, 102 * PAGE - 1), (102 * PAGE, 103 * PAGE - 1), (200 * PAGE, 201 * PAGE - 1)]);
    assert_eq!(lab.map(ioas, RW, RAM + PAGE, 2 * PAGE, 0), Ok(100 * PAGE));
    assert_eq!(lab.map(ioas, RW, RAM, 2 * PAGE, 0), Err(Errno::ENOSPC));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(102 * PAGE));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(200 * PAGE));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Err(Errno::ENOSPC));
    assert_eq!(lab.map(ioas, FIXED | RW, RAM, PAGE, 0), Ok(0), "a fixed one may lie outside");
    allow(&mut lab, ioas, &[]);
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(PAGE));

    let ioas = lab.ioas();
    lab.reserve(ioas, 0, u64::MAX - 4 * PAGE).unwrap();
    assert_eq!(lab.map(ioas, RW, RAM, 4 * PAGE, 0), Err(Errno::ENOSPC));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(u64::MAX - 4 * PAGE + 1));
    // The last page is never used.
    assert_eq!(lab.map(ioas, RW, RAM, 2 * PAGE, 0), Err(Errno::ENOSPC));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(u64::MAX - 3 * PAGE + 1));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(u64::MAX - 2 * PAGE + 1));
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Err(Errno::ENOSPC));
}

/// IOMMUFD-5.4: reservations that go make room again.
#[test]
fn room_comes_back() {
    let (mut lab, ioas) = lab();
    let mut high = domain();
    high.aperture = 1 << 20..=u64::MAX;
    lab.add_domain(1000, ioas, &high).unwrap();
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(1 << 20));
    lab.remove_domain(1000, ioas);
    assert_eq!(lab.map(ioas, RW, RAM, PAGE, 0), Ok(PAGE));
}

/// IOMMUFD-5.5: the address is a file's offset, or a copy's first address.
#[test]
fn addresses_of_files_and_copies() {
    let (mut lab, ioas) = lab();
    let fd = lab.client.mem_fd(&MemFile::new(1, 1 << 20));
    let map = IoasMapFile { ioas_id: ioas, flags: RW, fd, start: 0x1800, length: PAGE, ..IoasMapFile::default() };
    assert_eq!(lab.run(map).unwrap().iova, 0x1800);
    lab.map(ioas, FIXED | RW, RAM + 0x3000, 0x5000, 0x10_0000).unwrap();
    let other = lab.ioas();
    let iova = lab.copy((ioas, 0x10_1400), (other, 0), RW, 0x1000).unwrap();
    assert_eq!(iova, 0x1400);
    assert_eq!(lab.copy((ioas, 0x10_1000), (other, 0), RW, 0x4000), Ok(0x4000), "RAM + 0x4000 is aligned to 0x4000");
}
