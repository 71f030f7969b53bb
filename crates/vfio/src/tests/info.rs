// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! type1's GET_INFO: API-062 to API-066.

use ::device::Driver;
use caller::Accounts;
use uapi::Errno;
use uapi::vfio::InfoCapHeader;
use uapi::vfio::type1::{CapMigration, GET_INFO, Info, IovaRange};

use super::{PAGE, RAM, RW, Type1Lab};
use crate::Options;
use crate::testing::Client;
use crate::type1::Type1;

/// Size of the chain: MIGRATION 32, DMA_AVAIL 12 in 16, two ranges 48.
const CHAIN: u32 = 32 + 16 + 48;

/// GET_INFO with an argsz; the structure and what follows it.
fn get_info(t: &mut Type1Lab, argsz: u32) -> Result<(Info, u64), Errno> {
    let arg = t.lab.client.room(512);
    let filled = [vec![0; 4], vec![0xcc; 508]].concat();
    caller::Caller::write(&t.lab.client, arg, &filled).unwrap();
    caller::Caller::write(&t.lab.client, arg, &argsz.to_le_bytes()).unwrap();
    t.ioctl(GET_INFO, arg).map(|value| {
        assert_eq!(value, 0);
        (t.lab.client.get(arg), arg)
    })
}

/// The capabilities as (id, version, body).
fn chain(t: &mut Type1Lab) -> Vec<(u16, u16, u64)> {
    let (info, arg) = get_info(t, 512).unwrap();
    let (mut caps, mut at) = (Vec::new(), u64::from(info.cap_offset));
    while at != 0 {
        assert_eq!(at % 8, 0);
        let header: InfoCapHeader = t.lab.client.get(arg + at);
        caps.push((header.id, header.version, arg + at + 8));
        at = u64::from(header.next);
    }
    caps
}

fn ranges(t: &mut Type1Lab) -> Vec<(u64, u64)> {
    let (_, _, body) = chain(t).into_iter().find(|(id, ..)| *id == 1).unwrap();
    let count = t.lab.client.get::<u32>(body);
    (0..u64::from(count))
        .map(|n| t.lab.client.get::<IovaRange>(body + 8 + 16 * n))
        .map(|range| (range.start, range.end))
        .collect()
}

fn available(t: &mut Type1Lab) -> u32 {
    let (_, _, body) = chain(t).into_iter().find(|(id, ..)| *id == 3).unwrap();
    t.lab.client.get(body)
}

/// API-062, API-005, API-006
#[test]
fn sizes_and_flags() {
    let mut t = Type1Lab::new(3);
    assert_eq!(t.ioctl(GET_INFO, 8), Err(Errno::EFAULT));
    assert_eq!(get_info(&mut t, 15), Err(Errno::EINVAL));
    let needed = 24 + CHAIN;
    // min(argsz, 24) bytes come back, with the size needed in argsz.
    let (info, _) = get_info(&mut t, 16).unwrap();
    let cc = 0xcccc_cccc;
    assert_eq!(info, Info { argsz: needed, flags: 3, iova_pgsizes: 0x4020_1000, cap_offset: cc, pad: cc });
    let (info, _) = get_info(&mut t, 20).unwrap();
    assert_eq!((info.cap_offset, info.pad), (0, cc));
    let (info, arg) = get_info(&mut t, needed - 1).unwrap();
    assert_eq!((info.argsz, info.flags, info.cap_offset), (needed, 3, 0));
    assert_eq!(t.lab.client.get::<u32>(arg + 24), cc, "no chain");
    let (info, _) = get_info(&mut t, needed).unwrap();
    assert_eq!((info.argsz, info.flags, info.cap_offset), (needed, 3, 24));
}

/// API-063, API-064
#[test]
fn capabilities_in_order() {
    let mut t = Type1Lab::new(3);
    let caps = chain(&mut t);
    assert_eq!(caps.iter().map(|(id, version, _)| (*id, *version)).collect::<Vec<_>>(), [(2, 1), (3, 1), (1, 1)]);
    let migration: CapMigration = t.lab.client.get(caps[0].2);
    assert_eq!(migration, CapMigration { flags: 0, pad: 0, pgsize_bitmap: 4096, max_dirty_bitmap_size: 1 << 28 });
}

/// API-065
#[test]
fn dma_avail_counts_mappings() {
    let mut t = Type1Lab::new(3);
    assert_eq!(available(&mut t), 65535);
    for n in 0..3 {
        t.map(RW, RAM, n * PAGE, PAGE).unwrap();
    }
    assert_eq!(t.map(RW, RAM, 0, PAGE), Err(Errno::EEXIST));
    assert_eq!(available(&mut t), 65532);
    t.unmap(0, 0, 2 * PAGE).unwrap();
    assert_eq!(available(&mut t), 65534);
}

/// API-066
#[test]
fn iova_ranges() {
    for (width, expected) in [
        (48, vec![(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)]),
        (39, vec![(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]),
        (32, vec![(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff)]),
        (30, vec![(0, 0x3fff_ffff)]),
        (64, vec![(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)]),
    ] {
        let mut t = Type1Lab::with(3, Options { address_width: width, ..Options::default() });
        assert_eq!(ranges(&mut t), expected, "{width} bits");
    }
}

/// API-045: a group whose aperture has no room for what is mapped.
#[test]
fn group_that_conflicts_with_mappings() {
    let mut t = Type1Lab::new(3);
    t.map(RW, RAM, 1 << 40, PAGE).unwrap();
    t.lab.add(8, "0000:02:00.0", Some(Driver::VfioPci));
    let group = t.lab.open_group(8).unwrap();
    t.lab.vfio.options.address_width = 40;
    assert_eq!(t.lab.set_container(group, t.container), Err(Errno::EINVAL));
    t.lab.vfio.options.address_width = 41;
    t.lab.set_container(group, t.container).unwrap();
    assert_eq!(ranges(&mut t).last(), Some(&(0xfef0_0000, 0x1ff_ffff_ffff)));
    assert_eq!(t.map(RW, RAM, 1 << 41, PAGE), Err(Errno::EINVAL));
}

/// API-062, API-063: what a backend says that no group is attached to.
#[test]
fn before_any_group() {
    let client = Client::new(1);
    let mut type1 = Type1::open(3, &Options::default()).unwrap();
    let arg = client.put(&Info { argsz: 512, ..Info::default() });
    type1.ioctl(GET_INFO, arg, &client, &Accounts::default()).unwrap();
    let info: Info = client.get(arg);
    assert_eq!((info.flags, info.iova_pgsizes, info.cap_offset), (3, !0xfff, 24));
    let first: InfoCapHeader = client.get(arg + 24);
    let second: InfoCapHeader = client.get(arg + u64::from(first.next));
    assert_eq!((first.id, second.id, second.next), (2, 3, 0));
}
