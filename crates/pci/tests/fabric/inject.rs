// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `aer-inject` format, and what Linux makes of it.

use pci::aer::spec::{correctable, register, root, uncorrectable};
use pci::aer::{InjectError, Injection, parse};
use pci::{Fabric, FabricBuilder, FunctionSpec, Item, Place, PortType, Signal, cap};
use proptest::prelude::*;

use crate::common::{at, nvme};

fn complaint(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// ERR-065, ERR-066, ERR-067
#[test]
fn the_format() {
    let text = "# Fatal\nAER\nPCI_ID 0000:01:00.0\nUNCOR_STATUS COMP_ABORT\nHEADER_LOG 0 1 2 3\n";
    let wanted = Injection {
        target: Some(at("0000:01:00.0")),
        correctable: 0,
        uncorrectable: uncorrectable::COMPLETER_ABORT,
        header: [0, 1, 2, 3],
        place: (2, 1),
    };
    assert_eq!(parse(text), Ok(vec![wanted]));
    // Any case, aliases, several on a line, octal and hexadecimal numbers.
    let text =
        "aer id 02:1f.7 cor bad_dllp REP_ROLL hl 010 0x9 0xA 0Xb # no\nAER BUS 3 DEV 0x1f FN 7 UNCOR 0x1000 ECRC";
    let error = complaint(text);
    assert!(error.starts_with("1:53: `0Xb`"), "C's scanner wants a small x: {error}");
    let text = text.replace("0Xb", "0xb");
    let all = parse(&text).unwrap();
    assert_eq!((all[0].target, all[0].correctable, all[0].header), (Some(at("02:1f.7")), 0x180, [8, 9, 10, 11]));
    assert_eq!((all[1].target, all[1].uncorrectable), (Some(at("03:1f.7")), 0x8_1000));
    assert_eq!(all[1].place, (2, 1));
    let all = parse("AER DOMAIN 1 BUS 0xff DEV 0 FN 0 COR RCVR COR REP_TIMER").unwrap();
    assert_eq!((all[0].target, all[0].correctable), (Some(at("0001:ff:00.0")), 0x1000), "the later list replaces");
    // Nothing that is needed: the tool takes the address from its command line.
    assert_eq!(parse("AER COR_STATUS 0x2 HEADER_LOG 0 1 2 3").unwrap()[0].target, None);
    assert_eq!(parse("AER UNCOR_STATUS").unwrap()[0].uncorrectable, 0);
    assert_eq!(parse(" # nothing"), Ok(vec![]));
    let names = "AER COR_STATUS RCVR BAD_TLP BAD_DLLP REP_ROLL REP_TIMER \
        UNCOR_STATUS TRAIN DLP POISON_TLP FCP COMP_TIME COMP_ABORT UNX_COMP RX_OVER MALF_TLP ECRC UNSUP";
    let all = parse(names).unwrap();
    assert_eq!((all[0].correctable, all[0].uncorrectable), (0x11c1, 0x001f_f011));
}

#[test]
fn complaints_name_line_and_column() {
    for (text, expected) in [
        ("COR_STATUS RCVR", "1:1: `COR_STATUS`: an error begins with AER"),
        ("AER", "1:1: an error needs something"),
        ("AER\nAER COR RCVR", "1:1: an error needs something"),
        ("AER\n  COR_STATUS MALF_TLP", "2:14: `MALF_TLP` cannot stand here"),
        ("AER PCI_ID 1:0.0", "1:12: `1:0.0` is not a PCI address"),
        ("AER PCI_ID 00:20.0", "1:12: `00:20.0` is not a PCI address"),
        ("AER PCI_ID", "1:5: PCI_ID is not followed by"),
        ("AER BUS 256 DEV 0 FN 0", "1:9: BUS: 256 is more than 255"),
        ("AER BUS 1 DEV 32 FN 0", "1:15: DEV: 32 is more than 31"),
        ("AER BUS 1 FN 0", "1:11: `FN`: DEV is wanted"),
        ("AER BUS 1", "1:10: the text ends where DEV is wanted"),
        ("AER HEADER_LOG 1 2 3", "1:5: HEADER_LOG is not followed by a number"),
        ("AER HEADER_LOG 1 2 3 x", "1:22: `x` is not a number"),
        ("AER HEADER_LOG 1 2 3 09", "1:22: `09` is not a number"),
        ("AER HEADER_LOG 1 2 3 0x100000000", "1:22: `0x100000000` is not a number of 32 bits"),
        ("AER COR RCVR ; # x", "1:14: `;` cannot stand here"),
        ("AER\n\té", "2:2: `é` cannot stand here"),
    ] {
        assert!(complaint(text).starts_with(expected), "{text:?}: {}", complaint(text));
    }
}

/// ERR-060
#[test]
fn the_record() {
    let mut record = [0; 32];
    record[0..3].copy_from_slice(&[1, 2, 3]);
    record[4] = 0x10;
    record[8] = 0x40;
    record[12..16].copy_from_slice(&[4, 3, 2, 1]);
    record[28] = 1;
    let injection = Injection::from_record(&record).unwrap();
    assert_eq!(injection.target, Some(at("0001:01:02.3")));
    assert_eq!((injection.uncorrectable, injection.correctable, injection.header[0]), (0x10, 0x40, 0x0102_0304));
    assert_eq!(Injection::from_record(&record[..28]).unwrap().target, Some(at("01:02.3")), "no domain: 0");
    assert_eq!(Injection::from_record(&record[..27]), None);
    // Half a domain, and one that no segment has.
    assert_eq!(Injection::from_record(&record[..29]).unwrap().target, Some(at("0001:01:02.3")));
    record[30] = 1;
    assert_eq!(Injection::from_record(&record).unwrap().target, None);
    assert_eq!(Injection::from_record(&[0; 33]), None);
}

fn fabric() -> Fabric {
    let mut builder = FabricBuilder::new();
    builder.add(Item::port(Place::root().at(1, 0), PortType::RootPort).leads_to(1));
    builder.plug_auto(at("01:00.0"), nvme());
    builder.plug_auto(at("02:00.0"), FunctionSpec { aer: false, ..nvme() });
    builder.add(
        Item::new(Place::root().at(3, 0), FunctionSpec { aer: false, ..FunctionSpec::port(PortType::RootPort) })
            .leads_to(3),
    );
    builder.plug_auto(at("03:00.0"), nvme());
    builder.add(Item::new(Place::root().at(9, 0), nvme()));
    builder.build().unwrap()
}

fn aer(fabric: &Fabric, address: &str, offset: u16) -> u32 {
    let function = fabric.function(at(address)).unwrap();
    function.read(function.extended_capability(cap::EXT_AER).unwrap() + offset, 4)
}

fn of(correctable: u32, uncorrectable: u32) -> Injection {
    Injection { correctable, uncorrectable, header: [1, 2, 3, 4], ..Injection::default() }
}

/// ERR-061: in this order.
#[test]
fn what_is_refused() {
    let mut fabric = fabric();
    let mut inject = |address: &str, served| fabric.inject(at(address), &of(0x2000, 0), |_| served).unwrap_err();
    assert_eq!(inject("07:00.0", false), InjectError::NoDevice(at("07:00.0")));
    assert_eq!(inject("00:09.0", false), InjectError::NoRoot(at("00:09.0")));
    assert_eq!(inject("02:00.0", false), InjectError::NoCapability(at("02:00.0")));
    assert_eq!(inject("03:00.0", false), InjectError::NoRootCapability(at("00:03.0")));
    assert_eq!(inject("01:00.0", false), InjectError::CorrectableMasked(at("01:00.0"), 0x2000));
    let error = fabric.inject(at("01:00.0"), &of(1, 0), |_| false).unwrap_err();
    assert_eq!(error, InjectError::NoService(at("00:01.0")));
    assert_eq!(fabric.take_signals(), []);
}

/// ERR-062: one bit that is not masked is enough; what was masked shows later.
#[test]
fn masked_errors() {
    let mut fabric = fabric();
    let drive = at("01:00.0");
    let error = fabric.inject(drive, &of(1, 1 << 22), |_| true);
    assert_eq!(error, Err(InjectError::UncorrectableMasked(drive, 1 << 22)), "internal errors are masked");
    assert_eq!(aer(&fabric, "00:01.0", register::ROOT_STATUS), 0);
    assert_eq!(fabric.inject(drive, &of(correctable::ADVISORY | 1, 0), |_| true), Ok(()));
    assert_eq!(aer(&fabric, "01:00.0", register::UNCORRECTABLE_STATUS), 1 << 22);
    assert_eq!(fabric.take_signals(), [Signal::RootError(at("00:01.0"))]);
}

/// ERR-063
#[test]
fn what_the_registers_say_then() {
    let mut fabric = fabric();
    let drive = at("01:00.0");
    fabric.function_mut(drive).unwrap().write(0x78, 2, 0); // no reports
    fabric.inject(drive, &of(0, uncorrectable::ECRC), |_| true).unwrap();
    assert_eq!(aer(&fabric, "00:01.0", register::ROOT_STATUS), root::UNCOR | root::NONFATAL);
    assert_eq!(aer(&fabric, "00:01.0", register::SOURCE), 0x0100_0000);
    assert_eq!(
        (aer(&fabric, "01:00.0", register::CONTROL) & 0x1f, aer(&fabric, "01:00.0", register::HEADER_LOG)),
        (19, 1)
    );
    fabric.inject(drive, &of(0x40, uncorrectable::ECRC | uncorrectable::MALFORMED), |_| true).unwrap();
    let all = root::UNCOR | root::NONFATAL | root::MULTI_UNCOR | root::FATAL | root::COR;
    assert_eq!(aer(&fabric, "00:01.0", register::ROOT_STATUS), all, "one fatal bit makes it fatal");
    assert_eq!(aer(&fabric, "00:01.0", register::SOURCE), 0x0100_0100);
    // At the root port itself.
    fabric.inject(at("00:01.0"), &of(0x40, 0), |_| true).unwrap();
    assert_eq!(aer(&fabric, "00:01.0", register::ROOT_STATUS), all | root::MULTI_COR);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_at_a_place_in_it(text in "[AEaerPCI_DBUSVFNOTHLG0-9x:. #\n\u{e9}-]{0,120}") {
        match parse(&text) {
            Ok(all) => prop_assert!(all.len() <= text.to_ascii_uppercase().matches("AER").count()),
            Err(error) => {
                let line = text.split('\n').nth(error.line - 1);
                prop_assert!(line.is_some_and(|line| error.column <= line.chars().count() + 1), "{error}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read(
        correctable in any::<u32>(), uncorrectable in any::<u32>(), header in any::<[u32; 4]>(),
        segment in any::<u16>(), bus in any::<u8>(), devfn in any::<u8>(),
    ) {
        let target = pci::Address::from_devfn(segment, bus, devfn);
        let [a, b, c, d] = header;
        let text = format!("AER\nPCI_ID {target}\nCOR_STATUS {correctable:#x}\nUNCOR_STATUS {uncorrectable} HEADER_LOG {a} {b:#x} {c} {d}");
        let wanted = Injection { target: Some(target), correctable, uncorrectable, header, place: (1, 1) };
        prop_assert_eq!(parse(&text), Ok(vec![wanted]));
    }
}
