// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the IOMMU logs of accesses that it refuses.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use caller::testing::{Client, TestPlatform};
use device::Asked;
use host::tree::Node;
use host::{Host, Lab};
use iommu::{Access, AddressSpace};
use sim::SimStorage;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use uapi::vfio::cdev::BindIommufd;
use uapi::vfio::device::BIND_IOMMUFD;

/// Faults that were logged: their fields, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.name() == "iommu.fault"
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

const LAB: &str = "
[[device]]
model = \"nvme\"
addr = \"01:00.0\"
size = \"1M\"
[[device]]
model = \"dsa\"
addr = \"02:00.0\"
driver = \"idxd\"
[[device]]
model = \"dsa\"
addr = \"03:00.0\"
[[device]]
model = \"dsa\"
parent = \"02:00.0\"
pasid = 77
";

fn logged(does: impl FnOnce(&mut Host)) -> Vec<String> {
    let lab = Lab::parse("test", LAB).unwrap();
    let mut host = Host::new(lab, Arc::<TestPlatform>::default(), Box::new(SimStorage)).unwrap();
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || does(&mut host));
    std::mem::take(&mut *log.0.lock().unwrap())
}

fn endpoint(host: &Host, n: usize) -> Arc<device::Endpoint> {
    let endpoint = Arc::clone(host.endpoints().nth(n).unwrap());
    endpoint.requester.set_bus_master(true);
    endpoint
}

/// FAULT-2.2, API-066: a device without page requests that finds nothing, or
/// is attached to nothing, is logged: who, by which PASID, where, what, why.
#[test]
fn a_fault_is_logged() {
    let events = logged(|host| {
        let nvme = endpoint(host, 0);
        nvme.requester.session().read(0x5000, &mut [0; 4]).unwrap_err();
        nvme.requester.attach(Some(AddressSpace::new().into()));
        nvme.requester.session().write(0x7008, &[0; 4]).unwrap_err();
        nvme.requester.session_pasid(9).read(0x5000, &mut [0; 4]).unwrap_err();
        // Nothing leaves the function.
        nvme.requester.set_bus_master(false);
        nvme.requester.session().read(0x5000, &mut [0; 4]).unwrap_err();
    });
    let has = |n: usize, words: &[&str]| {
        words.iter().for_each(|word| assert!(events[n].contains(word), "{word}: {}", events[n]));
    };
    assert_eq!(events.len(), 3, "{events:?}");
    has(0, &["0000:01:00.0", "address=0x5000", "access=Read", "context entry is clear"]);
    has(1, &["address=0x7008", "access=Write", "PTE write access is not set"]);
    has(2, &["pasid=9", "PASID-table entry is clear"]);
}

/// FAULT-2.1: who asks for pages has no fault where there is none; the same
/// device without anybody to ask has. FAULT-4.8: a part's are the function's,
/// with the part's PASID.
#[test]
fn who_asks_for_pages_has_no_fault() {
    let events = logged(|host| {
        let dsa = endpoint(host, 2);
        dsa.requester.attach(Some(AddressSpace::new().into()));
        dsa.requester.session().read(0x1000, &mut [0; 4]).unwrap_err();
        let client = Client::new(1);
        let iommufd = host.open(Node::Iommufd, &client).unwrap();
        let node = host.open(Node::VfioCdev(1), &client).unwrap();
        let bind = client.put(&BindIommufd { argsz: 16, iommufd: client.fd(iommufd), ..BindIommufd::default() });
        host.ioctl(node, BIND_IOMMUFD, bind, &client).unwrap();
        dsa.requester.set_bus_master(true);
        assert!(matches!(dsa.page_requests.ask(None, Access::Read, 0x2000), Asked::Sent(_)));
        dsa.requester.session().read(0x2000, &mut [0; 4]).unwrap_err();
        let part = endpoint(host, 3);
        part.requester.session().read(0x3000, &mut [0; 4]).unwrap_err();
    });
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[0].contains("0000:03:00.0") && events[0].contains("0x1000"), "{}", events[0]);
    assert!(events[1].contains("0000:02:00.0") && events[1].contains("pasid=77"), "{}", events[1]);
}

/// A device that faults for ever fills nothing.
#[test]
fn a_flood_is_told_of_now_and_then() {
    let events = logged(|host| {
        let nvme = endpoint(host, 0);
        (0..100_000).for_each(|n| assert!(nvme.requester.session().read(n * 4096, &mut [0; 4]).is_err()));
    });
    assert_eq!(events.len(), 64 + 10);
    assert!(events.last().unwrap().contains("count=65536"));
}
