// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Identify, in all its forms.

use std::sync::Arc;

use device::Disk;
use models::nvme::spec::{
    AdminOpcode, Cns, Command, IdentifyController, IdentifyNamespace, Status, VERSION, controller, padded,
};
use models::nvme::{Config, Controller, LbaSize};
use models::testing::nvme::{Driver, command};
use models::testing::{Access, Bench, MemoryDisk, TestMemory};

fn driver() -> Driver<Bench> {
    let disks = [1 << 20, 3 << 20, 4096 + 511].map(|len| MemoryDisk::new(len) as Arc<dyn Disk>);
    let config = Config {
        serial: "S3RIAL\u{e9}".into(),
        model_name: "a model with a name that is much longer than forty characters".into(),
        lba_size: LbaSize::B512,
        max_queue_pairs: 7,
        namespaces: disks.to_vec(),
        controller_id: 3,
        total_vfs: 2,
        ..Config::default()
    };
    let bench = Bench::new(Box::new(Controller::new(config)), Access::Mapped, TestMemory::new(1 << 20, false));
    let mut driver = Driver::new(bench);
    driver.enable(16).unwrap();
    driver
}

fn ask(driver: &mut Driver<Bench>, cns: u32, nsid: u32, cdw11: u32) -> Result<Vec<u8>, Status> {
    let identify = Command {
        nsid: nsid.into(),
        cdw10: cns.into(),
        cdw11: cdw11.into(),
        prp1: 0x80000.into(),
        ..command(AdminOpcode::Identify)
    };
    driver.machine.memory.set(0x80000, &[0xaa; 4096]);
    match driver.execute(0, identify).unwrap().status() {
        Status::SUCCESS => {
            let mut data = vec![0; 4096];
            driver.machine.memory.get(0x80000, &mut data);
            Ok(data)
        }
        status => Err(status),
    }
}

#[test]
fn the_controller_tells_what_it_is() {
    let mut driver = driver();
    let id: IdentifyController = driver.identify(Cns::Controller, 0).unwrap();
    assert_eq!(id.sn, padded("S3RIAL?"));
    assert_eq!(&id.mn, b"a model with a name that is much longer ");
    assert_eq!((id.cntlid.get(), id.nn.get(), id.ver.get(), id.mdts), (3, 3, VERSION, 9));
    assert_eq!((id.sqes, id.cqes, id.cntrltype, id.aerl, id.elpe), (0x66, 0x44, 1, 3, 63));
    let oncs = controller::ONCS_COMPARE | controller::ONCS_DATASET | controller::ONCS_WRITE_ZEROES;
    assert_eq!(id.oncs.get() & oncs, oncs);
    assert_eq!((id.sgls.get(), id.fuses.get(), id.vwc), (0, 0, 7));
    assert_eq!(id.tnvmcap.get(), (4 << 20) + 4096 + 511);
    assert!(id.subnqn.starts_with(b"nqn.2014-08.org.nvmexpress:uuid:") && id.subnqn[255] == 0);

    let function = driver.machine.endpoint.spec();
    assert_eq!((function.class, function.total_vfs, id.vid.get()), (0x01_0802, 2, function.vendor));
    assert_eq!(function.msix.as_ref().map(|msix| msix.vectors), Some(65));
}

#[test]
fn namespaces_tell_what_they_are() {
    let mut driver = driver();
    for (nsid, blocks) in [(1, 2048), (2, 6144), (3, 8)] {
        let ns: IdentifyNamespace = driver.identify(Cns::Namespace, nsid).unwrap();
        assert_eq!((ns.nsze.get(), ns.ncap.get(), ns.nuse.get()), (blocks, blocks, blocks));
        assert_eq!((ns.nlbaf, ns.flbas, ns.lbaf[0].lbads, ns.lbaf[0].ms.get()), (0, 0, 9, 0));

        let list = ask(&mut driver, 3, nsid, 0).unwrap();
        assert_eq!(list[..4], [1, 8, 0, 0]);
        assert_eq!(list[4..12], ns.eui64);
        assert_eq!(list[12..16], [2, 16, 0, 0]);
        assert_eq!(list[16..32], ns.nguid);
        assert_eq!(list[32..36], [3, 16, 0, 0]);
        assert_ne!(list[36..52], [0; 16]);
        assert!(list[52..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn lists_are_ascending_and_end_with_zero() {
    let mut driver = driver();
    for (after, ids) in [(0, &[1, 2, 3][..]), (1, &[2, 3]), (3, &[]), (0xffff_fffd, &[])] {
        let list = ask(&mut driver, 2, after, 0).unwrap();
        let seen: Vec<u32> = list.chunks(4).map(|id| u32::from_le_bytes(id.try_into().unwrap())).collect();
        assert_eq!(&seen[..ids.len()], ids, "after {after}");
        assert!(seen[ids.len()..].iter().all(|id| *id == 0));
    }
    for (cns, nsid) in [(0x12, 1), (0x13, 0)] {
        assert_eq!(ask(&mut driver, cns, nsid, 0).unwrap()[..6], [1, 0, 3, 0, 0, 0]);
        assert_eq!(ask(&mut driver, cns | 3 << 16, nsid, 0).unwrap()[..2], [1, 0]);
        assert_eq!(ask(&mut driver, cns | 4 << 16, nsid, 0).unwrap()[..6], [0; 6]);
    }
}

#[test]
fn newer_forms_say_that_nothing_is_special() {
    let mut driver = driver();
    assert!(ask(&mut driver, 5, 1, 0).unwrap().iter().all(|byte| *byte == 0));
    assert!(ask(&mut driver, 6, 0, 0).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(ask(&mut driver, 5, 1, 2 << 24), Err(Status::INVALID_FIELD));
    assert_eq!(ask(&mut driver, 6, 0, 1 << 24), Err(Status::INVALID_FIELD));
}

#[test]
fn wrong_requests_are_refused() {
    let mut driver = driver();
    for cns in [0, 3, 5, 0x12] {
        for nsid in [0, 4, u32::MAX] {
            assert_eq!(ask(&mut driver, cns, nsid, 0), Err(Status::INVALID_NAMESPACE), "{cns:#x} {nsid:#x}");
        }
    }
    for nsid in [u32::MAX - 1, u32::MAX] {
        assert_eq!(ask(&mut driver, 2, nsid, 0), Err(Status::INVALID_NAMESPACE));
    }
    for cns in (0..=0xff).filter(|cns| Cns::from_raw(*cns).is_none()) {
        assert_eq!(ask(&mut driver, cns.into(), 1, 0), Err(Status::INVALID_FIELD), "{cns:#x}");
    }
    let nowhere = Command { cdw10: 1.into(), prp1: 0x1000_0000.into(), ..command(AdminOpcode::Identify) };
    assert_eq!(driver.execute(0, nowhere).unwrap().status(), Status::DATA_TRANSFER_ERROR);
}
