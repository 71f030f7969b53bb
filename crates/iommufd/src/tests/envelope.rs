// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How structures are passed (iommufd-api.md, section 1).

use caller::testing::Client;
use uapi::Errno;
use uapi::iommufd::{
    Command, Destroy, FaultQueueAlloc, GetHwInfo, HwQueueAlloc, HwptAlloc, HwptGetDirtyBitmap, HwptInvalidate,
    HwptSetDirtyTracking, IoasAlloc, IoasAllowIovas, IoasChangeProcess, IoasCopy, IoasIovaRanges, IoasMap, IoasMapFile,
    IoasUnmap, SetOption, VdeviceAlloc, VeventqAlloc, VfioIoas, ViommuAlloc, request,
};

use crate::Options;
use crate::testing::Lab;

const PAGE: u64 = 4096;

/// A structure of `size` bytes, which says so, with `tail` behind what we know.
fn sized(client: &Client, size: usize, known: usize, tail: u8) -> u64 {
    let mut bytes = vec![0; size.max(4)];
    bytes[..4].copy_from_slice(&(size as u32).to_ne_bytes());
    if size > known {
        bytes[known..].fill(tail);
    }
    client.put_bytes(&bytes)
}

/// IOMMUFD-1.3, IOMMUFD-1.6, SELF-6.1: too short, exact, longer with zeros and
/// with something behind. `expected` is the answer to a structure of zeros.
fn lengths<T: Command>(expected: Result<(), Errno>) {
    let mut lab = Lab::new();
    let known = size_of::<T>();
    let mut run = |size, tail| {
        let arg = sized(&lab.client, size, known, tail);
        lab.ioctl(T::REQUEST, arg).map(|_| ())
    };
    for size in 0..T::MIN {
        assert_eq!(run(size, 0), Err(Errno::EINVAL), "{:#x} with {size}", T::REQUEST);
    }
    for size in T::MIN..=known + 9 {
        assert_eq!(run(size, 0), expected, "{:#x} with {size}", T::REQUEST);
    }
    for size in [known + 1, known + 8, known + 5000] {
        assert_eq!(run(size, 0xff), Err(Errno::E2BIG), "{:#x} with {size}", T::REQUEST);
    }
}

/// IOMMUFD-1.6
#[test]
fn lengths_of_every_structure() {
    use Errno as E;
    lengths::<Destroy>(Err(E::ENOENT));
    lengths::<IoasAlloc>(Ok(()));
    lengths::<IoasAllowIovas>(Err(E::ENOENT));
    lengths::<IoasCopy>(Err(E::EINVAL));
    lengths::<IoasIovaRanges>(Err(E::ENOENT));
    lengths::<IoasMap>(Err(E::EINVAL));
    lengths::<IoasMapFile>(Err(E::EINVAL));
    lengths::<IoasUnmap>(Err(E::ENOENT));
    lengths::<SetOption>(Err(E::EPERM));
    lengths::<VfioIoas>(Err(E::ENODEV));
    lengths::<IoasChangeProcess>(Ok(()));
    lengths::<HwptAlloc>(Err(E::ENOENT));
    lengths::<GetHwInfo>(Err(E::ENOENT));
    lengths::<HwptSetDirtyTracking>(Err(E::ENOENT));
    lengths::<HwptGetDirtyBitmap>(Err(E::ENOENT));
    lengths::<HwptInvalidate>(Err(E::ENOENT));
    lengths::<FaultQueueAlloc>(Ok(()));
    lengths::<ViommuAlloc>(Err(E::EOPNOTSUPP));
    lengths::<VdeviceAlloc>(Err(E::ENOENT));
    lengths::<VeventqAlloc>(Err(E::EOPNOTSUPP));
    lengths::<HwQueueAlloc>(Err(E::EOPNOTSUPP));
}

/// IOMMUFD-1.2, IOMMUFD-1.3: what comes first decides.
#[test]
fn numbers_are_looked_at_in_order() {
    let mut lab = Lab::new();
    let good = sized(&lab.client, 12, 12, 0);
    // a: below the base and behind the table nothing is read.
    for nr in [0, 0x63, 0x7f, 0x95, 0xa0, 0xff] {
        assert_eq!(lab.ioctl(request(nr), 0), Err(Errno::ENOTTY), "{nr:#x}");
    }
    // b: the size is read before the rest of the number is looked at.
    for number in [0x3b81, 0x3a81, 0xc004_3b81] {
        assert_eq!(lab.ioctl(number, 0), Err(Errno::EFAULT), "{number:#x}");
    }
    // c: type and direction.
    for number in [0x3a81, 0xc004_3b81, 0x1_0000 | 0x3b81] {
        assert_eq!(lab.ioctl(number, good), Err(Errno::ENOTTY), "{number:#x}");
    }
    // d before f: it is too short, and cannot be read as a whole.
    lab.client.memory.map(PAGE * 100, PAGE, true);
    let edge = PAGE * 101 - 8;
    lab.client.memory.store(edge, &11_u32.to_ne_bytes());
    assert_eq!(lab.ioctl(0x3b81, edge), Err(Errno::EINVAL));
    lab.client.memory.store(edge, &12_u32.to_ne_bytes());
    assert_eq!(lab.ioctl(0x3b81, edge), Err(Errno::EFAULT));
    assert_eq!(lab.ioctl(0x3b81, good).map(|_| ()), Ok(()));
}

/// IOMMUFD-1.2: the selftest's number is a hole between the tables' ends.
#[test]
fn numbers_up_to_the_selftest_s() {
    let mut lab = Lab::with(Options { selftest: true, ..Options::default() });
    for nr in 0x95..0xa0 {
        assert_eq!(lab.ioctl(request(nr), 0), Err(Errno::EFAULT), "{nr:#x}");
        let good = sized(&lab.client, 128, 128, 0);
        assert_eq!(lab.ioctl(request(nr), good), Err(Errno::ENOTTY), "{nr:#x}");
    }
    assert_eq!(lab.ioctl(request(0xa1), 0), Err(Errno::ENOTTY));
}

/// IOMMUFD-1.3, IOMMUFD-1.4: what lies behind is looked at however much it is,
/// and E2BIG comes before EFAULT only where it is met first.
#[test]
fn a_long_tail_is_read() {
    let mut lab = Lab::new();
    let (base, pages) = (PAGE * 100, 40);
    lab.client.memory.map(base, pages * PAGE, true);
    let size = (pages * PAGE) as u32;
    lab.client.memory.store(base, &size.to_ne_bytes());
    assert_eq!(lab.ioctl(0x3b81, base).map(|_| ()), Ok(()));
    lab.client.memory.store(base, &(size + 1).to_ne_bytes());
    assert_eq!(lab.ioctl(0x3b81, base), Err(Errno::EFAULT));
    lab.client.memory.store(base + 30 * PAGE + 7, &[1]);
    assert_eq!(lab.ioctl(0x3b81, base), Err(Errno::E2BIG));
    lab.client.memory.store(base, &u32::MAX.to_ne_bytes());
    assert_eq!(lab.ioctl(0x3b81, base), Err(Errno::E2BIG));
}

/// IOMMUFD-1.5: the reply is no longer than what was given, and an object is
/// undone if it cannot be written.
#[test]
fn replies() {
    let mut lab = Lab::new();
    let arg = sized(&lab.client, 64, 12, 0);
    lab.client.memory.store(arg + 12, &[0; 52]);
    lab.ioctl(IoasAlloc::REQUEST, arg).unwrap();
    let id = lab.client.get::<[u32; 16]>(arg);
    assert_eq!((id[0], id[2], id[3]), (64, 1, 0));

    lab.client.memory.map(PAGE * 100, PAGE, false);
    lab.client.memory.store(PAGE * 100, &12_u32.to_ne_bytes());
    assert_eq!(lab.ioctl(IoasAlloc::REQUEST, PAGE * 100), Err(Errno::EFAULT));
    assert_eq!(lab.ioas(), 2, "the id that failed is free again");
}

/// IOMMUFD-1.7: a wrong kind of object is no object.
#[test]
fn errors_that_mean_the_same_everywhere() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let queue = lab.run(FaultQueueAlloc::default()).unwrap().out_fault_id;
    let unmap = |ioas_id| IoasUnmap { ioas_id, length: u64::MAX, ..IoasUnmap::default() };
    assert_eq!(lab.run(unmap(queue)), Err(Errno::ENOENT));
    assert_eq!(lab.run(unmap(99)), Err(Errno::ENOENT));
    assert_eq!(lab.run(unmap(ioas)).unwrap().length, 0);
    assert_eq!(lab.run(IoasAlloc { flags: 1, ..IoasAlloc::default() }), Err(Errno::EOPNOTSUPP));
}

/// IOMMUFD-1.8: no structure has a hole before a `u64`.
#[test]
fn u64_fields_are_aligned() {
    assert_eq!(std::mem::offset_of!(IoasCopy, length) % 8, 0);
    assert_eq!(std::mem::offset_of!(IoasMap, user_va) % 8, 0);
    assert_eq!(std::mem::offset_of!(IoasUnmap, iova) % 8, 0);
    assert_eq!(std::mem::offset_of!(SetOption, val64) % 8, 0);
    assert_eq!(std::mem::offset_of!(HwptAlloc, data_uptr) % 8, 0);
    assert_eq!(std::mem::offset_of!(HwQueueAlloc, nesting_parent_iova) % 8, 0);
}
