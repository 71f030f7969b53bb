// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A BAR exported as a dma-buf, and mapped for another device by `/dev/iommu`.

use std::sync::Arc;

use ::device::Endpoint;
use caller::FileId;
use pci::Address;
use uapi::Errno;
use uapi::iommufd::IoasMapFile;
use uapi::vfio::device::{DmaRange, RESET};
use zerocopy::IntoBytes as _;

use super::migration::{GET, feature};
use super::{ADDRESS, MASTER, MEMORY, Rig, plug, spec};
use crate::Options;
use crate::testing::{Asked, Lab};

const OTHER: Address = Address::new(0, 2, 0, 0);
const IOVA: u64 = 0x40_0000;
const PAGE: u64 = 4096;

/// Two devices of one iommufd, the second one attached to an IOAS.
struct Pair {
    rig: Rig,
    ioas: u32,
    other: Arc<Endpoint>,
    iommufd: FileId,
}

impl Pair {
    fn new() -> Pair {
        let mut lab = Lab::new(Options::default());
        let iommufd = lab.open_iommufd();
        let ioas = lab.ioas(iommufd);
        let mut logs = Vec::new();
        let mut files = Vec::new();
        for address in [ADDRESS, OTHER] {
            logs.push(plug(&mut lab, address, spec()));
            lab.vfio.driver_bound(address, &lab.board);
            let file = lab.open_cdev(files.len() as u32).unwrap();
            lab.bind_cdev(file, iommufd).unwrap();
            files.push(file);
        }
        lab.attach(files[1], ioas, None).unwrap();
        let other = lab.endpoint(&OTHER.to_string());
        let mut rig = Rig { lab, log: logs.swap_remove(0), container: iommufd, group: iommufd, file: files[1] };
        rig.set_command(MEMORY | MASTER);
        rig.file = files[0];
        rig.set_command(MEMORY);
        rig.asked();
        Pair { rig, ioas, other, iommufd }
    }

    /// Exports ranges of BAR 4: the descriptor.
    fn export(&mut self, ranges: &[DmaRange]) -> i32 {
        let head = [4_u32, 2, 0, ranges.len() as u32];
        let data = [head.as_bytes(), ranges.as_bytes()].concat();
        let arg = self.rig.lab.client.put_bytes(&[[8 + data.len() as u32, GET | 11].as_bytes(), &data].concat());
        self.rig.ioctl(uapi::vfio::device::FEATURE, arg).unwrap() as i32
    }

    fn map(&mut self, fd: i32, start: u64, length: u64, iova: u64) -> Result<(), Errno> {
        let (ioas_id, size) = (self.ioas, 40);
        let map = IoasMapFile { size, flags: 7, ioas_id, fd, start, length, iova };
        let words: [u32; 10] = zerocopy::transmute!(map);
        self.rig.lab.iommufd_call(self.iommufd, 0x3b8f, words).map(drop)
    }

    fn reaches(&self, iova: u64) -> bool {
        self.other.requester.session().read(iova, &mut [0; 4]).is_ok()
    }
}

/// API-208, API-212, IOMMUFD-5.10: the value is a descriptor; mapped, another
/// device's DMA comes to the BAR. In pieces it cannot be mapped.
#[test]
fn a_bar_by_descriptor() {
    let mut p = Pair::new();
    let whole = p.export(&[DmaRange { offset: 0x3000, length: 4 * PAGE }]);
    assert!(whole >= 0 && p.rig.lab.client.is_open(whole));
    assert_eq!(p.map(whole, PAGE, 2 * PAGE, IOVA), Ok(()));
    p.other.requester.session().write(IOVA + 0x18, &[1, 2, 3, 4]).unwrap();
    p.rig.endpoint().turn(0);
    assert!(p.rig.asked().contains(&Asked::Write(4, 0x4018, vec![1, 2, 3, 4])));
    assert!(p.reaches(IOVA + 2 * PAGE - 4) && !p.reaches(IOVA + 2 * PAGE));
    assert_eq!(p.map(whole, PAGE, 4 * PAGE, IOVA + 0x10_0000), Err(Errno::EINVAL), "beyond its end");
    let pieces = [DmaRange { offset: 0, length: PAGE }, DmaRange { offset: 4 * PAGE, length: PAGE }];
    let pieces = p.export(&pieces);
    assert_eq!(p.map(pieces, 0, PAGE, IOVA + 0x10_0000), Err(Errno::EOPNOTSUPP));
    // The mapping outlives the descriptor.
    let file = caller::Caller::file(&p.rig.lab.client, whole).unwrap().unwrap();
    assert!(p.rig.lab.iommufd.is_object(file));
    p.rig.lab.iommufd.release(file);
    assert!(p.reaches(IOVA) && !p.rig.lab.iommufd.is_object(file));
}

/// API-209, API-211, API-236: what takes the memory away revokes, for good what
/// is mapped; a new mapping works once memory is enabled again.
#[test]
fn it_is_revoked() {
    let mut p = Pair::new();
    let fd = p.export(&[DmaRange { offset: 0, length: PAGE }]);
    p.map(fd, 0, PAGE, IOVA).unwrap();
    p.rig.set_command(0);
    assert!(!p.reaches(IOVA));
    assert_eq!(p.map(fd, 0, PAGE, IOVA + PAGE), Err(Errno::ENODEV));
    let late = p.export(&[DmaRange { offset: 0, length: PAGE }]);
    assert_eq!(p.map(late, 0, PAGE, IOVA + PAGE), Err(Errno::ENODEV), "made while it is off");
    p.rig.set_command(MEMORY);
    assert!(!p.reaches(IOVA), "it does not come back by itself");
    for (fd, iova) in [(fd, IOVA + PAGE), (late, IOVA + 2 * PAGE)] {
        p.map(fd, 0, PAGE, iova).unwrap();
        assert!(p.reaches(iova));
    }
    p.rig.ioctl(RESET, 0).unwrap();
    assert!(!p.reaches(IOVA + PAGE) && !p.reaches(IOVA + 2 * PAGE));
    p.map(fd, 0, PAGE, IOVA + 3 * PAGE).unwrap();
    assert!(p.reaches(IOVA + 3 * PAGE));
    // Low power until its end.
    feature(&mut p.rig, 1 << 17 | 3, &[]).unwrap();
    assert!(!p.reaches(IOVA + 3 * PAGE));
    assert_eq!(p.map(fd, 0, PAGE, IOVA + 4 * PAGE), Err(Errno::ENODEV));
    feature(&mut p.rig, 1 << 17 | 5, &[]).unwrap();
    p.rig.set_command(MEMORY);
    assert_eq!(p.map(fd, 0, PAGE, IOVA + 4 * PAGE), Ok(()));
    // Close is for good.
    let file = p.rig.file;
    p.rig.lab.release(file);
    assert!(!p.reaches(IOVA + 4 * PAGE));
    assert_eq!(p.map(fd, 0, PAGE, IOVA + 5 * PAGE), Err(Errno::ENODEV));
}
