// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers: values, access sizes, enabling, and programs that store where
//! they should not.

use models::nvme::LbaSize;
use models::nvme::spec::{Aqa, Cap, Cc, Csts, Register, VERSION, doorbell};
use models::testing::Access;
use models::testing::nvme::Machine;

use crate::fixture::{Fixture, fixture, ready, ready_with};

const BOTH: [Access; 2] = [Access::Mapped, Access::Trapped];

#[test]
fn capabilities_say_what_there_is() {
    for access in BOTH {
        let mut driver = fixture(access, LbaSize::B512).driver;
        let cap = u64::from(driver.register(Register::CapLow)) | u64::from(driver.register(Register::CapHigh)) << 32;
        assert_eq!(cap & 0xffff, 4095, "MQES");
        assert_eq!(cap >> 16 & 1, 1, "CQR");
        assert_eq!(cap >> 17 & 3, 0, "AMS");
        assert_eq!(cap >> 24 & 0xff, 20, "TO");
        assert_eq!(cap >> 32 & 0xf, 0, "DSTRD");
        assert_eq!(cap >> 37 & 0xff, 1, "CSS");
        assert_eq!((cap >> 48 & 0xf, cap >> 52 & 0xf), (0, 4), "MPSMIN, MPSMAX");
        assert_eq!(cap >> 56, 0, "PMRS, CMBS");
        assert_eq!(Cap(cap).max_entries(), 4096);
        assert_eq!(driver.register(Register::Vs), VERSION);
        assert_eq!(driver.status(), Csts::empty());
    }
}

#[test]
fn trapped_accesses_come_in_all_sizes() {
    let fixture = fixture(Access::Trapped, LbaSize::B512);
    let endpoint = &fixture.driver.machine.endpoint;
    endpoint.write(0, 0x28, &0x1122_3344_5566_7788_u64.to_le_bytes(), 0);
    let mut asq = [0; 8];
    endpoint.read(0, 0x28, &mut asq, 0);
    assert_eq!(u64::from_le_bytes(asq), 0x1122_3344_5566_7000, "on a page");
    endpoint.write(0, 0x2c, &[0xaa], 0);
    endpoint.write(0, 0x2e, &[0xbb, 0xcc], 0);
    endpoint.read(0, 0x28, &mut asq, 0);
    assert_eq!(u64::from_le_bytes(asq), 0xccbb_33aa_5566_7000);
    let mut two = [0; 2];
    endpoint.read(0, 0x0a, &mut two, 0);
    assert_eq!(two, [1, 0], "upper half of VS");
    for (bar, offset) in [(0, 0x38), (0, 0xff8), (0, 0x2000), (0, 0x3ff8), (2, 0)] {
        let mut data = [0xff; 8];
        endpoint.write(bar, offset, &data, 0);
        endpoint.read(bar, offset, &mut data, 0);
        assert_eq!(data, [0; 8], "{bar} {offset:#x}");
    }
    let mut control = [0; 4];
    endpoint.read(0, 0x2000 + 64 * 16 + 12, &mut control, 0);
    assert_eq!(control, [1, 0, 0, 0], "MSI-X vectors begin masked");
}

#[test]
fn queue_addresses_may_be_stored_in_halves_over_time() {
    let mut fixture = fixture(Access::Mapped, LbaSize::B512);
    let driver = &mut fixture.driver;
    driver.set_register(Register::AsqHigh, 0xffff_ffff);
    driver.machine.run();
    driver.set_register(Register::AsqLow, 0x1000);
    driver.machine.run();
    driver.set_register(Register::AsqHigh, 0);
    driver.machine.run();
    driver.set_register(Register::AcqLow, 0x2abc);
    driver.machine.run();
    assert_eq!(driver.register(Register::AcqLow), 0x2000, "low bits are reserved");
    driver.set_register(Register::Aqa, Aqa::new(2, 2).0 | 0xf000_f000);
    driver.machine.run();
    assert_eq!(driver.register(Register::Aqa), 0x0001_0001);
    driver.set_register(Register::Cc, Cc::ENABLED.0);
    driver.wait(Csts::RDY, true).unwrap();
}

#[test]
fn unsupported_settings_are_fatal() {
    for access in BOTH {
        for (cc, aqa, asq) in [
            (Cc::ENABLED.0, 0, 0x1000),
            (Cc::ENABLED.0, 0x001f_0000, 0x1000),
            (Cc::ENABLED.0, 0x0000_001f, 0x1000),
            (Cc::ENABLED.0 | 1 << 4, 0x001f_001f, 0x1000), // Another command set.
            (Cc::ENABLED.0 | 7 << 4, 0x001f_001f, 0x1000), // Admin commands only.
            (Cc::ENABLED.0 | 5 << 7, 0x001f_001f, 0x1000), // Pages of 128 KiB.
            (Cc::ENABLED.0 | 1 << 7, 0x001f_001f, 0x1000), // ASQ not on such a page.
            (Cc::ENABLED.0 | 1 << 11, 0x001f_001f, 0x1000), // Weighted round robin.
        ] {
            let mut driver = fixture(access, LbaSize::B512).driver;
            driver.set_register(Register::Aqa, aqa);
            driver.set_register(Register::AsqLow, asq);
            driver.set_register(Register::AcqLow, 0x4000);
            driver.set_register(Register::Cc, cc);
            driver.machine.run();
            assert_eq!(driver.status(), Csts::CFS, "{cc:#x} {aqa:#x}");
            // A reset helps. Nobody waits for RDY, which is clear already.
            driver.set_register(Register::Cc, 0);
            driver.machine.run();
            driver.enable(32).unwrap();
            assert_eq!(driver.status(), Csts::RDY);
        }
    }
}

#[test]
fn read_only_registers_come_back() {
    let mut fixture = ready();
    let all = [Register::CapLow, Register::CapHigh, Register::Vs, Register::Csts, Register::Nssr];
    let before = all.map(|register| fixture.driver.register(register));
    for register in all {
        fixture.driver.set_register(register, 0xdead_beef);
    }
    for _ in 0..1100 {
        fixture.driver.machine.turn();
    }
    assert_eq!(all.map(|register| fixture.driver.register(register)), before);
    assert!(fixture.is_alive());
}

#[test]
fn the_mask_is_set_and_cleared_bit_by_bit() {
    for access in BOTH {
        let mut driver = fixture(access, LbaSize::B512).driver;
        for (register, value, mask) in [
            (Register::Intms, 0x0000_0003, 0x0000_0003),
            (Register::Intms, 0x8000_0001, 0x8000_0003),
            (Register::Intmc, 0x0000_0001, 0x8000_0002),
            (Register::Intms, 0x8000_0002, 0x8000_0002),
            (Register::Intmc, 0x8000_0002, 0),
            (Register::Intmc, 0x8000_0002, 0),
        ] {
            driver.set_register(register, value);
            driver.machine.run();
            assert_eq!(driver.register(Register::Intms), mask, "{register:?} {value:#x} {access:?}");
        }
    }
}

#[test]
fn trapped_and_mapped_accesses_see_each_other() {
    let mut fixture = ready();
    let endpoint = fixture.driver.machine.endpoint.clone();
    // A mapped store comes before a trapped load after it.
    fixture.driver.set_register(Register::Aqa, 0x0012_0034);
    let mut data = [0; 4];
    endpoint.read(0, 0x24, &mut data, 0);
    assert_eq!(u32::from_le_bytes(data), 0x0012_0034);
    // A trapped store shows in the pages.
    endpoint.write(0, 0x24, &0x0056_0078_u32.to_le_bytes(), 0);
    assert_eq!(fixture.driver.register(Register::Aqa), 0x0056_0078);
    // A trapped doorbell is taken once, though the pages show it too.
    let read = fixture.small_read();
    fixture.driver.put(1, read).unwrap();
    endpoint.write(0, doorbell::submission(1), &1_u32.to_le_bytes(), 0);
    assert_eq!(fixture.driver.machine.load(doorbell::submission(1)), 1);
    fixture.driver.machine.run();
    assert_eq!(fixture.driver.reap(1).len(), 1);
    // A trapped disable is not undone by what the pages showed.
    endpoint.write(0, 0x14, &0_u32.to_le_bytes(), 0);
    fixture.driver.machine.run();
    assert_eq!((fixture.driver.register(Register::Cc), fixture.driver.status()), (0, Csts::empty()));
}

#[test]
fn pages_that_appear_again_show_the_registers() {
    let mut fixture = ready();
    let before = snapshot(&mut fixture);
    let endpoint = fixture.driver.machine.endpoint.clone();
    endpoint.set_memory(false, 0);
    endpoint.set_memory(true, 0);
    assert_eq!(snapshot(&mut fixture), before);
    // Without pages a program still has trapped accesses.
    endpoint.set_file(None, 0);
    fixture.driver.machine.file = None;
    assert_eq!(snapshot(&mut fixture), before);
    assert!(fixture.is_alive());
    // Another program opens the device: new pages, all zeros at first.
    let file = models::testing::TestFile::new([0x4000, 0, 0, 0, 0, 0]);
    endpoint.set_file(Some(file.clone()), 0);
    fixture.driver.machine.file = Some(file);
    assert!(fixture.is_alive());
}

/// ERR-040: ones while nobody answers; afterwards registers that there are not
/// read as zero (Linux takes CMBSZ for a controller memory buffer otherwise).
#[test]
fn ones_do_not_stay() {
    const CMBSZ: u64 = 0x3c;
    let mut fixture = ready();
    let before = snapshot(&mut fixture);
    let endpoint = fixture.driver.machine.endpoint.clone();
    for _ in 0..2 {
        endpoint.set_responding(false, 0);
        assert_eq!(fixture.driver.machine.load(CMBSZ), u32::MAX);
        endpoint.set_memory(false, 0);
        endpoint.set_memory(true, 0);
        endpoint.set_responding(true, 0);
        assert_eq!(fixture.driver.machine.load(CMBSZ), 0);
        assert_eq!(snapshot(&mut fixture), before);
    }
}

fn snapshot(fixture: &mut Fixture) -> Vec<u32> {
    let registers: Vec<u32> = Register::ALL.iter().map(|register| fixture.driver.register(*register)).collect();
    let doorbells = (0..132).map(|i| fixture.driver.machine.load(0x1000 + 4 * i)).collect::<Vec<_>>();
    [registers, doorbells].concat()
}

#[test]
fn a_doorbell_stored_again_does_nothing() {
    for access in BOTH {
        let mut fixture = ready_with(access);
        let read = fixture.small_read();
        assert!(fixture.status(1, read).is_success());
        fixture.disk.take_calls();
        let tail = fixture.driver.machine.load(doorbell::submission(1));
        for _ in 0..3 {
            fixture.driver.machine.store(doorbell::submission(1), tail);
            fixture.driver.machine.run();
        }
        assert_eq!(fixture.disk.take_calls().reads, 0);
        assert!(fixture.is_alive());
    }
}
