// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the survey of a sysfs says, on the labs' own trees: the answers must
//! be those that the calls give.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use host::survey::{HotReset, Survey, group_table, reset_details, reset_table};
use host::{Host, Lab};
use pci::Address;
use sim::{SimPlatform, SimStorage};

fn lab(text: &str) -> Host {
    let lab = Lab::parse("test", text).unwrap();
    Host::new(lab, SimPlatform::new(1), Box::new(SimStorage)).unwrap()
}

fn survey(host: &Host) -> Survey {
    Survey::read(&host.tree(), "/sys").unwrap()
}

fn at(text: &str) -> Address {
    text.parse().unwrap()
}

fn device(address: &str, more: &str) -> String {
    format!("[[device]]\nmodel = \"nvme\"\naddr = \"{address}\"\nsize = \"1M\"\n{more}")
}

/// Every lab of the repository and a few more.
fn labs() -> Vec<Host> {
    let mut hosts = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../labs")).unwrap() {
        // One without devices has no PCI in its sysfs.
        hosts.push(lab(&std::fs::read_to_string(entry.unwrap().path()).unwrap()));
        if hosts.last().is_some_and(|host| host.functions().is_empty()) {
            hosts.pop();
        }
    }
    let switch = "[[port]]\naddr = \"00:01.0\"\nbus = 1\nacs = false\n[[port]]\naddr = \"01:00.0\"\nkind = \"upstream\"\nbus = 2\n\
        [[port]]\naddr = \"02:00.0\"\nkind = \"downstream\"\nbus = 3\nhotplug = true\n[[port]]\naddr = \"02:01.0\"\nkind = \"downstream\"\nbus = 4\n";
    hosts.push(lab(&[switch, &device("03:00.0", ""), &device("04:00.0", ""), &device("04:00.1", "")].concat()));
    let bridge = "[[port]]\naddr = \"00:02.0\"\nbus = 5\nkind = \"pci-bridge\"\n";
    hosts.push(lab(&[
        bridge,
        &device("05:03.0", ""),
        &device("05:04.0", "driver = \"nic\"\n"),
        &device("00:09.0", ""),
    ]
    .concat()));
    hosts
}

/// HOT-003, HOT-008, HOT-002: the same functions in the same order as
/// GET_PCI_HOT_RESET_INFO gives.
#[test]
fn scopes_are_those_of_the_fabric() {
    for host in labs() {
        let survey = survey(&host);
        for (address, function) in host.board().fabric.functions() {
            let scope = host.board().fabric.hot_reset_scope(address);
            assert_eq!(survey.hot_reset_scope(address).ok(), scope.ok(), "{address}");
            let read = survey.function(address).unwrap();
            assert_eq!(read.port_type(), Some(function.spec().port_type), "{address}");
            assert_eq!(read.parent, host.board().fabric.parent(address));
            assert_eq!(read.group, host.board().fabric.group(address));
        }
    }
}

/// Who is together has a reason; who is alone needs none.
#[test]
fn every_group_has_its_reason() {
    for host in labs() {
        for group in survey(&host).groups() {
            assert_eq!(group.why.is_empty(), group.functions.len() == 1, "{group:?}");
            assert!(!group.why.iter().any(|why| why.contains("not to be seen")), "{group:?}");
        }
    }
}

/// GRP-082 to GRP-086
#[test]
fn reasons() {
    let why = |host: &Host, group: usize| survey(host).groups()[group].why.clone();
    let host = lab(&[device("01:00.0", ""), device("01:00.1", "")].concat());
    assert_eq!(why(&host, 1), ["0000:01:00.0 has no ACS capability", "0000:01:00.1 has no ACS capability"]);
    let port = "[[port]]\naddr = \"00:01.0\"\nbus = 1\nacs = false\n";
    let host = lab(&[port, &device("01:00.0", "")].concat());
    assert_eq!(why(&host, 0), ["root port 0000:00:01.0 has no ACS capability"]);
    let bridge = "[[port]]\naddr = \"00:02.0\"\nbus = 5\nkind = \"pci-bridge\"\n";
    let host = lab(&[bridge, &device("05:03.0", ""), &device("05:04.0", "driver = \"nic\"\n")].concat());
    let group = &survey(&host).groups()[0];
    assert!(group.why[0].starts_with("bridge 0000:00:02.0 is a bridge to conventional PCI"), "{:?}", group.why);
    assert!(!group.viable);
    assert_eq!(group.in_the_way, ["0000:05:04.0 is bound to nic"]);
}

/// HOT-001, HOT-023, HOT-025: who may reset what, and who is in the way.
#[test]
fn verdicts() {
    // Two functions with groups of their own on one bus.
    let pair = |more: &str| {
        lab(&[device("01:00.0", "acs = true\n"), device("01:00.1", &format!("acs = true\n{more}"))].concat())
    };
    let verdict =
        |host: &Host, user: Option<&[Address]>| survey(host).reset_group(at("01:00.0"), user).unwrap().hot_reset;
    let both = [at("01:00.0"), at("01:00.1")];
    let host = pair("");
    assert_eq!(verdict(&host, None), HotReset::Needs { groups: vec![1, 2] });
    assert_eq!(verdict(&host, Some(&both)), HotReset::Allowed);
    let refused =
        |reasons: &[&str]| HotReset::Refused { in_the_way: reasons.iter().map(|r| (*r).to_owned()).collect() };
    assert_eq!(verdict(&host, Some(&both[..1])), refused(&["0000:01:00.1 is in group 2, which the user has not"]));
    assert_eq!(verdict(&pair("driver = \"nic\"\n"), Some(&both)), refused(&["0000:01:00.1 has nic"]));
    assert_eq!(verdict(&pair("driver = \"none\"\n"), None), refused(&["0000:01:00.1 has no driver"]));
    // One group: its user has both.
    let host = lab(&[device("01:00.0", ""), device("01:00.1", "")].concat());
    assert_eq!(verdict(&host, Some(&both[..1])), HotReset::Allowed);
    // On a root bus.
    let host = lab(&device("00:09.0", ""));
    let report = survey(&host).reset_group(at("00:09.0"), None).unwrap();
    assert_eq!((report.kind.as_str(), report.name.as_str()), ("function", "0000:00:09.0"));
    assert!(matches!(report.hot_reset, HotReset::Impossible { .. }));
    assert_eq!(survey(&host).reset_group(at("07:00.0"), None), None);
}

/// HOT-054: a VF on the bus of its PF.
#[test]
fn virtual_functions() {
    let host = lab(&["[vfio]\nenable_sriov = true\n", &device("01:00.0", "total_vfs = 2\nvfs = 1\n")].concat());
    let survey = survey(&host);
    let vf = host.board().fabric.virtual_functions(at("01:00.0"))[0];
    let HotReset::Refused { in_the_way } = survey.reset_group(vf, None).unwrap().hot_reset else { panic!() };
    assert!(in_the_way[0].starts_with("0000:01:00.0 is in another device set"), "{in_the_way:?}");
    let HotReset::Refused { in_the_way } = survey.reset_group(at("01:00.0"), None).unwrap().hot_reset else { panic!() };
    assert!(in_the_way[0].starts_with(&format!("{vf} is in another device set")), "{in_the_way:?}");
    assert_eq!(survey.reset_groups(None).len(), 2);
}

#[test]
fn tables() {
    let host = lab(&[device("01:00.0", ""), device("01:00.1", "driver = \"none\"\n")].concat());
    let mut survey = survey(&host);
    survey.set_open(|address| address == at("01:00.0"));
    let table = group_table(&survey.groups());
    assert!(table.contains("1      yes     0000:01:00.0  vfio-pci, in use  0000:01:00.0 has no ACS"), "{table}");
    let resets = survey.reset_groups(None);
    let table = reset_table(&resets);
    let row = "0000:00:01.0  bus       0000:01:00.0  vfio-pci, in use  1      EINVAL: 0000:01:00.1 has no driver";
    assert!(table.contains(row), "{table}");
    let details = reset_details(&resets[0]);
    assert!(details.starts_with("bus 0000:00:01.0: a reset of bus 0000:01 behind root port 0000:00:01.0"), "{details}");
    assert!(details.contains("by itself: flr pm"), "{details}");
    // JSON and back.
    let json = serde_json::to_string(&resets).unwrap();
    assert_eq!(serde_json::from_str::<Vec<host::survey::ResetReport>>(&json).unwrap(), resets);
}
