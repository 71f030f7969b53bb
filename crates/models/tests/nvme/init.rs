// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What QEMU's block driver does: initialise, identify, write and read back.

use models::nvme::LbaSize;
use models::nvme::spec::{Cns, Feature, IdentifyController, IdentifyNamespace, NvmOpcode};
use models::testing::nvme::Machine;
use models::testing::{Access, TestMemory};

use crate::fixture::{DISK, MEMORY, fixture_on};

#[test]
fn a_driver_initialises_writes_and_reads_back() {
    for access in [Access::Mapped, Access::Trapped] {
        for (lba_size, remote) in [(LbaSize::B512, false), (LbaSize::B4096, false), (LbaSize::B512, true)] {
            let mut fixture = fixture_on(access, lba_size, TestMemory::new(MEMORY, remote));
            let driver = &mut fixture.driver;
            driver.enable(128).unwrap();
            let id: IdentifyController = driver.identify(Cns::Controller, 0).unwrap();
            assert_eq!((id.nn.get(), id.sqes, id.cqes), (1, 0x66, 0x44));
            let ns: IdentifyNamespace = driver.identify(Cns::Namespace, 1).unwrap();
            assert_eq!(ns.nsze.get() << ns.lbaf[0].lbads, DISK as u64);
            assert_eq!(driver.set_feature(Feature::NumberOfQueues, 0).unwrap(), 63 | 63 << 16);
            driver.create_queue_pair(1, 128, Some(0)).unwrap();

            let size = lba_size.bytes();
            let len = 1 << 20;
            let pattern: Vec<u8> = (0..len).map(|i| (i * 7 + i / 4096) as u8).collect();
            let (from, to) = (driver.alloc(len).unwrap(), driver.alloc(len + 4096).unwrap() + 512);
            driver.machine.set(from, &pattern);
            let blocks = (len / size) as u32;
            let write = driver.transfer(NvmOpcode::Write, 3, blocks, size, from).unwrap();
            driver.succeed(1, write).unwrap();
            let read = driver.transfer(NvmOpcode::Read, 3, blocks, size, to).unwrap();
            driver.succeed(1, read).unwrap();
            let mut back = vec![0; len as usize];
            driver.machine.get(to, &mut back);
            assert!(back == pattern, "{access:?} {lba_size:?} remote {remote}");
            let start = 3 * size as usize;
            assert!(fixture.disk.get(start..start + len as usize) == pattern);
        }
    }
}
