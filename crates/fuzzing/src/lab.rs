// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lab files and `--device` arguments: any text.
//!
//! An input is text: a lab file, then behind each NUL a `--device` argument.

use std::sync::Arc;

use device::Disk;
use host::lab::{DiskSpec, Medium};
use host::tree::Entry;
use host::{Host, Lab, LabError, Storage};
use models::testing::MemoryDisk;
use sim::SimPlatform;

/// Disks of a test's size only.
#[derive(Debug)]
struct SmallDisks;

impl Storage for SmallDisks {
    fn open(&self, spec: &DiskSpec) -> Result<Arc<dyn Disk>, String> {
        match (&spec.medium, spec.size) {
            (Medium::Ram, Some(size)) if size <= 1 << 20 => Ok(MemoryDisk::new(size as usize)),
            (medium, size) => Err(format!("no disk of {size:?} bytes of {medium:?} here")),
        }
    }
}

/// More is refused for its length before it is looked at.
const LONGEST: usize = 8 << 10;

/// The body of the target `lab`.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(&data[..data.len().min(LONGEST)]) else { return };
    let mut parts = text.split('\0');
    let mut lab = match Lab::parse("lab.toml", parts.next().unwrap_or_default()) {
        Ok(lab) => lab,
        Err(error) => return complaint(&error),
    };
    for argument in parts {
        if let Err(error) = lab.add_device(argument) {
            complaint(&error);
        }
    }
    match Host::new(lab, SimPlatform::new(1), Box::new(SmallDisks)) {
        Err(error) => complaint(&error),
        Ok(host) => shown(&host),
    }
}

/// A message says where and what, in a line.
fn complaint(error: &LabError) {
    let text = error.to_string();
    let what = text.split_once(": ").map_or("", |(_, what)| what);
    assert!(!what.trim().is_empty(), "{text:?}");
}

/// What was built can be shown: links lead somewhere, groups have members.
fn shown(host: &Host) {
    let tree = host.tree();
    for (path, entry) in tree.iter() {
        assert!(path.starts_with('/') && !path.ends_with('/') && !path.contains("//"), "{path}");
        if let Entry::Link(target) = entry {
            assert!(!target.is_empty() && !target.starts_with('/'), "{path} -> {target}");
        }
    }
    let fabric = &host.board().fabric;
    for (address, _) in fabric.functions() {
        let group = fabric.group(address);
        assert!(group.is_none_or(|group| fabric.group_members(group).contains(&address)), "{address}");
        let path = format!("/sys/bus/pci/devices/{address}");
        assert!(matches!(tree.get(&path), Some(Entry::Link(_))), "{path} is missing");
    }
    assert_eq!(host.functions().len(), fabric.functions().count());
}

/// Seeds: each names what it describes.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let texts: [(&str, &str); 24] = [
        ("empty", ""),
        ("comment", "# nothing\n"),
        ("one", "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"64K\"\n"),
        ("two", "[[device]]\nmodel = \"nvme\"\nsize = \"64K\"\n[[device]]\nmodel = \"ioat\"\n"),
        (
            "every-key",
            "[iommu]\naddress_width = 39\ninterrupt_remapping = false\n[vfio]\ndma_entry_limit = 0x10\nallow_unsafe_interrupts = true\nenable_sriov = true\ndisable_idle_d3 = true\nunlimited_memlock = true\n[[device]]\nmodel = \"nvme\"\naddr = \"0000:03:00.0\"\nsize = \"1M\"\nblock_size = 4096\nqueues = 3\nserial = \"A 1\"\nread_only = true\nacs = true\ndriver = \"none\"\ntotal_vfs = 3\nvfs = 2\n",
        ),
        (
            "switch",
            "[[port]]\naddr = \"00:01.0\"\nbus = 1\n[[port]]\naddr = \"01:00.0\"\nkind = \"upstream\"\nbus = 2\n[[port]]\naddr = \"02:00.0\"\nkind = \"downstream\"\nbus = 3\nacs = false\n[[device]]\nmodel = \"ioat\"\naddr = \"03:00.0\"\n",
        ),
        (
            "bridge",
            "[[port]]\naddr = \"00:02.0\"\nkind = \"pci-bridge\"\nbus = 9\n[[device]]\nmodel = \"ioat\"\naddr = \"09:1f.7\"\n",
        ),
        (
            "cycle",
            "[[port]]\naddr = \"01:00.0\"\nbus = 2\nkind = \"upstream\"\n[[port]]\naddr = \"02:00.0\"\nbus = 1\nkind = \"downstream\"\n",
        ),
        ("to-itself", "[[port]]\naddr = \"01:00.0\"\nbus = 1\n"),
        ("same-bus-twice", "[[port]]\naddr = \"00:01.0\"\nbus = 1\n[[port]]\naddr = \"00:02.0\"\nbus = 1\n"),
        ("bus-0", "[[port]]\naddr = \"00:01.0\"\nbus = 0\n[[device]]\nmodel = \"ioat\"\naddr = \"00:01.0\"\n"),
        (
            "last-bus",
            "[[port]]\naddr = \"00:1f.0\"\nbus = 255\n[[device]]\nmodel = \"nvme\"\naddr = \"ff:1f.7\"\nsize = \"64K\"\ntotal_vfs = 127\nvfs = 127\n",
        ),
        (
            "same-address",
            "[[device]]\nmodel = \"ioat\"\naddr = \"01:00.0\"\n[[device]]\nmodel = \"ioat\"\naddr = \"01:00.0\"\n",
        ),
        (
            "functions",
            "[[device]]\nmodel = \"ioat\"\naddr = \"01:00.0\"\n[[device]]\nmodel = \"ioat\"\naddr = \"01:00.3\"\n[[device]]\nmodel = \"ioat\"\naddr = \"01:00.7\"\nacs = true\n",
        ),
        ("no-function-0", "[[device]]\nmodel = \"ioat\"\naddr = \"01:00.3\"\n"),
        ("segment", "[[device]]\nmodel = \"ioat\"\naddr = \"ffff:01:00.0\"\n"),
        ("argument", "\0nvme,size=64K,addr=01:00.0,queues=1\0ioat"),
        ("argument-file", "\0nvme,file=/nowhere,read_only=on"),
        (
            "arguments-wrong",
            "\0\0,\0nvme,\0nvme,size\0nvme,size=1,size=2\0toaster\0nvme,addr=99:99.9\0nvme,size=9999999999T",
        ),
        ("types-wrong", "[iommu]\naddress_width = 3.5\n"),
        ("arrays-wrong", "[[device]]\nmodel = [\"nvme\"]\n"),
        ("table-wrong", "device = 1\nport = [1, 2]\n"),
        ("toml-wrong", "[[device]\nmodel = \"nvme"),
        ("unicode", "[[device]]\nmodel = \"nv\u{fc}me\"\n\"\u{1f600}\" = '''\n\n'''\n"),
    ];
    texts.into_iter().map(|(name, text)| (name, text.as_bytes().to_vec())).collect()
}
