// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What programs read in `/sys` and `/dev` before they make a VFIO call, and
//! what stores to attributes do.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use caller::Reply;
use host::tree::{Entry, Node, Tree};
use host::{Host, Lab};
use models::virtio::QUEUE_SIZE;
use sim::{BASE, Client, Fd, SimPlatform, SimStorage};
use uapi::Errno;

const DEVICE: &str = "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
const PORT: &str = "/sys/devices/pci0000:00/0000:00:01.0";

fn lab(text: &str) -> Host {
    let lab = Lab::parse("test", text).unwrap();
    Host::new(lab, SimPlatform::new(1), Box::new(SimStorage)).unwrap()
}

fn one() -> Host {
    lab("[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\n")
}

fn sriov() -> Host {
    lab("[vfio]\nenable_sriov = true\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\ntotal_vfs = 4\n")
}

fn text(tree: &Tree, path: &str) -> String {
    match tree.get(path) {
        Some(Entry::File { content, .. }) => String::from_utf8(content.clone()).unwrap(),
        other => panic!("{path}: {other:?}"),
    }
}

fn link<'a>(tree: &'a Tree, path: &str) -> &'a str {
    match tree.get(path) {
        Some(Entry::Link(target)) => target,
        other => panic!("{path}: {other:?}"),
    }
}

fn store(host: &mut Host, path: &str, value: &str) -> Result<usize, Errno> {
    match host.store(path, value.as_bytes())? {
        Reply::Value(taken) => Ok(taken as usize),
        other => panic!("{other:?}"),
    }
}

/// GRP-031, GRP-032, GRP-033
#[test]
fn a_device_is_found_by_links() {
    let tree = one().tree();
    assert_eq!(
        link(&tree, "/sys/bus/pci/devices/0000:01:00.0"),
        "../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    );
    assert_eq!(link(&tree, &format!("{DEVICE}/iommu_group")), "../../../../kernel/iommu_groups/1");
    assert_eq!(link(&tree, &format!("{DEVICE}/driver")), "../../../../bus/pci/drivers/vfio-pci");
    assert_eq!(link(&tree, &format!("{DEVICE}/subsystem")), "../../../../bus/pci");
    assert_eq!(link(&tree, &format!("{PORT}/driver")), "../../../bus/pci/drivers/pcieport");
}

/// GRP-035, GRP-036, GRP-048
#[test]
fn ids_are_written_as_linux_writes_them() {
    let tree = one().tree();
    let attribute = |name: &str| text(&tree, &format!("{DEVICE}/{name}"));
    assert_eq!(attribute("vendor"), "0x1234\n");
    assert_eq!(attribute("device"), "0x4e56\n");
    assert_eq!(attribute("subsystem_vendor"), "0x1234\n");
    assert_eq!(attribute("class"), "0x010802\n");
    assert_eq!(attribute("revision"), "0x01\n");
    assert_eq!(attribute("numa_node"), "-1\n");
    assert!(attribute("irq").trim_end().parse::<u32>().is_ok());
    assert_eq!(attribute("modalias"), "pci:v00001234d00004E56sv00001234sd00004E56bc01sc08i02\n");
    assert_eq!(attribute("local_cpulist"), "0\n");
    assert_eq!(attribute("local_cpus"), "1\n");
}

/// GRP-037, GRP-038, GRP-039
#[test]
fn resources_and_config_are_there() {
    let host = one();
    let tree = host.tree();
    let resource = text(&tree, &format!("{DEVICE}/resource"));
    let lines: Vec<&str> = resource.lines().collect();
    assert_eq!(lines.len(), 13);
    assert!(lines.iter().all(|l| l.len() == 3 * 18 + 2 && l.split(' ').all(|n| n.starts_with("0x"))), "{resource}");
    assert_ne!(lines[0], lines[1]);
    assert_eq!(text(&tree, &format!("{PORT}/resource")).lines().count(), 17);
    assert!(tree.get(&format!("{DEVICE}/resource0")).is_some());
    assert!(tree.get(&format!("{DEVICE}/resource2")).is_none());
    let Some(Entry::File { content, mode: 0o644, .. }) = tree.get(&format!("{DEVICE}/config")) else { panic!() };
    assert_eq!((content.len(), &content[..4]), (4096, &[0x34, 0x12, 0x56, 0x4e][..]));
}

/// GRP-041, GRP-042, GRP-043, GRP-044, GRP-045
#[test]
fn resets_power_link_and_errors() {
    let mut host = one();
    let tree = host.tree();
    assert_eq!(text(&tree, &format!("{DEVICE}/reset_method")), "flr pm bus\n");
    assert_eq!(text(&tree, &format!("{DEVICE}/power_state")), "D0\n");
    assert!(text(&tree, &format!("{DEVICE}/current_link_speed")).contains("GT/s"));
    assert!(text(&tree, &format!("{DEVICE}/aer_dev_fatal")).ends_with("TOTAL_ERR_FATAL 0\n"));
    let write_only = |path: String| matches!(tree.get(&path), Some(Entry::File { mode: 0o200, writable: true, .. }));
    assert!(write_only(format!("{DEVICE}/reset")) && write_only(format!("{PORT}/reset_subordinate")));
    assert_eq!(store(&mut host, &format!("{DEVICE}/reset"), "1\n"), Ok(2));
    assert_eq!(store(&mut host, &format!("{DEVICE}/reset"), "2\n"), Err(Errno::EINVAL));
    assert_eq!(store(&mut host, &format!("{PORT}/reset_subordinate"), "1\n"), Ok(2));
    assert_eq!(store(&mut host, &format!("{DEVICE}/vendor"), "1\n"), Err(Errno::EACCES));
}

/// ERR-072, ERR-073: which resets there are, and which are tried.
#[test]
fn reset_methods_are_chosen() {
    let mut host = one();
    let (file, reset) = (format!("{DEVICE}/reset_method"), format!("{DEVICE}/reset"));
    let shown = |host: &Host| text(&host.tree(), &file);
    assert_eq!(shown(&host), "flr pm bus\n");
    for (value, methods) in
        [("bus", "bus\n"), ("pm  flr \n", "pm flr\n"), ("flr flr\n", "flr flr\n"), ("default\n", "flr pm bus\n")]
    {
        assert_eq!(store(&mut host, &file, value), Ok(value.len()));
        assert_eq!(shown(&host), methods);
        assert_eq!(store(&mut host, &reset, "1"), Ok(1));
    }
    store(&mut host, &file, "pm").unwrap();
    for wrong in ["acpi", "device_specific", "flr nonsense", "FLR", "flr,pm", "pm pm pm pm pm pm pm pm"] {
        assert_eq!(store(&mut host, &file, wrong), Err(Errno::EINVAL), "{wrong}");
        assert_eq!(shown(&host), "pm\n");
    }
    assert_eq!(store(&mut host, &file, "\n"), Ok(1));
    assert_eq!(shown(&host), "");
    assert_eq!(store(&mut host, &reset, "1"), Err(Errno::ENOTTY));
    store(&mut host, &file, "default").unwrap();
    for (value, result) in
        [("0x1", Ok(3)), ("+1", Ok(2)), ("0", Err(Errno::EINVAL)), ("1 ", Err(Errno::EINVAL)), ("", Err(Errno::EINVAL))]
    {
        assert_eq!(store(&mut host, &reset, value), result, "{value}");
    }
    let below = format!("{PORT}/reset_subordinate");
    assert_eq!((store(&mut host, &below, "0"), store(&mut host, &below, "2")), (Ok(1), Ok(1)));
}

/// GRP-053, GRP-054, GRP-055, GRP-056; GRP-040: the count of a bound device.
#[test]
fn groups_list_their_members() {
    let tree = one().tree();
    assert_eq!(tree.get("/sys/kernel/iommu_groups/1/name"), None);
    assert_eq!(text(&tree, &format!("{DEVICE}/enable")), "1\n");
    assert_eq!(
        link(&tree, "/sys/kernel/iommu_groups/1/devices/0000:01:00.0"),
        "../../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    );
    assert_eq!(
        text(&tree, "/sys/kernel/iommu_groups/1/reserved_regions"),
        "0x00000000fee00000 0x00000000feefffff msi\n"
    );
    assert_eq!(text(&tree, "/sys/kernel/iommu_groups/1/type"), "DMA-FQ\n");
}

/// GRP-058, GRP-060
#[test]
fn a_group_has_a_node_while_vfio_has_a_member() {
    let mut host = one();
    let node = |host: &Host| host.tree().get("/dev/vfio/1").cloned();
    assert_eq!(host.tree().get("/dev/vfio/vfio"), Some(&Entry::Device(Node::VfioContainer)));
    assert_eq!(host.tree().get("/dev/iommu"), Some(&Entry::Device(Node::Iommufd)));
    assert_eq!(node(&host), Some(Entry::Device(Node::VfioGroup(1))));
    let before = host.generation();
    store(&mut host, "/sys/bus/pci/drivers/vfio-pci/unbind", "0000:01:00.0").unwrap();
    assert_eq!(node(&host), None);
    assert_ne!(host.generation(), before);
}

/// GRP-034, GRP-061
/// GRP-047, GRP-058, GRP-059, API-102, API-121
#[test]
fn a_device_of_vfio_pci_has_a_node_of_its_own() {
    let mut host = one();
    let node = |host: &Host, n: u32| host.tree().get(&format!("/dev/vfio/devices/vfio{n}")).cloned();
    assert_eq!(node(&host, 0), Some(Entry::Device(Node::VfioCdev(0))));
    assert_eq!(node(&host, 1), None);
    let tree = host.tree();
    let dir = "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/vfio-dev/vfio0";
    let (major, minor) = host::tree::NODE_DEVICE;
    assert_eq!(text(&tree, &format!("{dir}/dev")), format!("{major}:{minor}\n"));
    assert!(text(&tree, &format!("{dir}/uevent")).ends_with("DEVNAME=vfio/devices/vfio0\n"));
    assert_eq!(link(&tree, &format!("{dir}/device")), "../../../0000:01:00.0");
    assert_eq!(link(&tree, &format!("{dir}/subsystem")), "../../../../../../class/vfio-dev");
    assert!(link(&tree, "/sys/class/vfio-dev/vfio0").ends_with("0000:01:00.0/vfio-dev/vfio0"));

    // GRP-064: an open node keeps the driver, bound or not.
    let client = Client::new(1);
    let file = host.open(Node::VfioCdev(0), &client).unwrap();
    assert_eq!(host.kind(file), Some(host::FileKind::VfioDevice));
    assert!(host.device_file(file).is_some());
    assert!(host.is_open("0000:01:00.0".parse().unwrap()));
    host.release(file);
    store(&mut host, "/sys/bus/pci/drivers/vfio-pci/unbind", "0000:01:00.0").unwrap();
    assert_eq!(node(&host, 0), None);
    assert_eq!(host.open(Node::VfioCdev(0), &client), Err(Errno::ENODEV));
    store(&mut host, "/sys/bus/pci/devices/0000:01:00.0/driver_override", "vfio-pci").unwrap();
    store(&mut host, "/sys/bus/pci/drivers_probe", "0000:01:00.0").unwrap();
    assert_eq!(node(&host, 0), Some(Entry::Device(Node::VfioCdev(0))));
}

/// API-023, IOMMUFD-1.1
#[test]
fn the_containers_node_may_be_iommufds() {
    let mut host = lab("[vfio]\ncontainer = \"iommufd\"\n");
    let client = Client::new(1);
    let file = host.open(Node::VfioContainer, &client).unwrap();
    assert_eq!(host.kind(file), Some(host::FileKind::Iommufd));
    assert_eq!(host.ioctl(file, 0x3b65, 3, &client), Ok(caller::Reply::Value(1)));
    assert_eq!(host.ioctl(file, 0x3b66, 3, &client), Err(Errno::ENODEV), "no IOAS");
    assert!(Lab::parse("lab", "[vfio]\ncontainer = \"both\"\n").is_err());
    assert!(Lab::parse("lab", "[iommu]\npasid_bits = 21\n").is_err());
}

#[test]
fn drivers_are_bound_by_override_or_by_id() {
    let mut host = one();
    let driver = |host: &Host| host.functions().into_iter().find(|f| f.address == "0000:01:00.0").unwrap().driver;
    let attribute = format!("{DEVICE}/driver_override");
    assert_eq!(text(&host.tree(), &attribute), "(null)\n");
    store(&mut host, "/sys/bus/pci/drivers/vfio-pci/unbind", "0000:01:00.0\n").unwrap();
    assert_eq!(driver(&host), None);
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/vfio-pci/bind", "0000:01:00.0"), Err(Errno::ENODEV));

    store(&mut host, &attribute, "vfio-pci\n").unwrap();
    assert_eq!(text(&host.tree(), &attribute), "vfio-pci\n");
    store(&mut host, "/sys/bus/pci/drivers_probe", "0000:01:00.0").unwrap();
    assert_eq!(driver(&host).as_deref(), Some("vfio-pci"));
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/vfio-pci/bind", "0000:01:00.0"), Err(Errno::EBUSY));
    assert_eq!(store(&mut host, &attribute, &"x".repeat(4096)), Err(Errno::EINVAL));

    store(&mut host, &attribute, "\n").unwrap();
    store(&mut host, "/sys/bus/pci/drivers/vfio-pci/unbind", "0000:01:00.0").unwrap();
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/vfio-pci/new_id", "1234 4e56"), Ok(9));
    assert_eq!(driver(&host).as_deref(), Some("vfio-pci"));
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/vfio-pci/new_id", "1234 4e56"), Err(Errno::EEXIST));
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/vfio-pci/remove_id", "1234 4e56"), Ok(9));
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/vfio-pci/remove_id", "1234 4e56"), Err(Errno::ENODEV));
}

/// GRP-062
#[test]
fn vfio_pci_takes_the_ids_of_its_option() {
    let device = "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\ndriver = \"none\"\n";
    let driver = |ids: &str| {
        let host = lab(&format!("[vfio]\nids = \"{ids}\"\n{device}"));
        host.functions().into_iter().find(|f| f.address == "0000:01:00.0").unwrap().driver
    };
    assert_eq!(driver(""), None);
    for ids in [
        "1234:4e56",
        "8086:10fb,1234:4e56:1234:4e56",
        "1234:4e56:1234:4e56:010802",
        "1234:4e56:1234:4e56:010000:ff0000",
    ] {
        assert_eq!(driver(ids).as_deref(), Some("vfio-pci"), "{ids}");
    }
    for ids in ["1234:4e57", "1234:4e56:1:1", "1234:4e56:1234:4e56:020000"] {
        assert_eq!(driver(ids), None, "{ids}");
    }
    let wrong = Lab::parse("x", &format!("[vfio]\nids = \"12345:1\"\n{device}")).unwrap();
    assert!(Host::new(wrong, SimPlatform::new(1), Box::new(SimStorage)).is_err());
}

/// GRP-065, API-192: a probe that fails leaves the function unbound.
#[test]
fn a_bridge_is_refused() {
    let mut host = one();
    store(&mut host, "/sys/bus/pci/drivers/pcieport/unbind", "0000:00:01.0").unwrap();
    store(&mut host, &format!("{PORT}/driver_override"), "vfio-pci").unwrap();
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/vfio-pci/bind", "0000:00:01.0"), Err(Errno::EINVAL));
    assert_eq!(host.functions()[0].driver, None);
}

/// GRP-029: a kernel driver is kept out of a group that a program owns.
#[test]
fn a_group_in_use_takes_no_other_driver() {
    let mut host = lab(concat!(
        "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\n",
        "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.1\"\nsize = \"1M\"\n",
        "[[device]]\nmodel = \"nvme\"\naddr = \"02:00.0\"\nsize = \"1M\"\ndriver = \"nvme\"\n",
    ));
    let client = Client::new(1);
    let container = host.open(Node::VfioContainer, &client).unwrap();
    let fd = client.install(Fd::File(container));
    let number = host.functions().into_iter().find(|f| f.address == "0000:01:00.0").and_then(|f| f.group).unwrap();
    let group = host.open(Node::VfioGroup(number), &client).unwrap();
    client.set(BASE, &fd.to_le_bytes());
    host.ioctl(group, 0x3b68, BASE, &client).unwrap();
    host.ioctl(container, 0x3b66, 3, &client).unwrap();
    client.set(BASE, b"0000:01:00.0\0");
    host.ioctl(group, 0x3b6a, BASE, &client).unwrap();

    let sibling = "/sys/bus/pci/devices/0000:01:00.1/driver_override";
    store(&mut host, "/sys/bus/pci/drivers/vfio-pci/unbind", "0000:01:00.1").unwrap();
    store(&mut host, sibling, "nvme").unwrap();
    assert_eq!(store(&mut host, "/sys/bus/pci/drivers/nvme/bind", "0000:01:00.1"), Err(Errno::EBUSY));
}

/// GRP-046, GRP-049, GRP-050, GRP-051, GRP-052
#[test]
fn virtual_functions_come_and_go() {
    let mut host = sriov();
    let attribute = |host: &Host, name: &str| text(&host.tree(), &format!("{DEVICE}/{name}"));
    assert_eq!(attribute(&host, "sriov_totalvfs"), "4\n");
    assert_eq!(attribute(&host, "sriov_numvfs"), "0\n");
    assert_eq!(attribute(&host, "sriov_vf_device"), "4e56\n");
    assert_eq!(attribute(&host, "sriov_drivers_autoprobe"), "1\n");
    let (offset, stride) = (attribute(&host, "sriov_offset"), attribute(&host, "sriov_stride"));
    assert!(offset.trim_end().parse::<u16>().unwrap() > 0 && stride.trim_end().parse::<u16>().unwrap() > 0);

    let numvfs = format!("{DEVICE}/sriov_numvfs");
    assert_eq!(store(&mut host, &numvfs, "5"), Err(Errno::ERANGE));
    assert_eq!(store(&mut host, &numvfs, "0"), Ok(1));
    assert_eq!(store(&mut host, &numvfs, "2"), Ok(1));
    assert_eq!(store(&mut host, &numvfs, "2"), Ok(1));
    assert_eq!(store(&mut host, &numvfs, "3"), Err(Errno::EBUSY));
    let vfs: Vec<_> = host.functions().into_iter().filter(|f| f.physical_function.is_some()).collect();
    assert_eq!(vfs.len(), 2);
    assert!(vfs.iter().all(|vf| vf.id == "1234:4e56" && vf.driver.as_deref() == Some("vfio-pci")));
    let tree = host.tree();
    assert_eq!(link(&tree, &format!("{DEVICE}/virtfn1")), format!("../{}", vfs[1].address));
    let vf = format!("{PORT}/{}", vfs[0].address);
    assert_eq!(link(&tree, &format!("{vf}/physfn")), "../0000:01:00.0");
    assert_eq!(text(&tree, &format!("{vf}/driver_override")), "vfio-pci\n");

    // vfio-pci takes its VFs with it.
    store(&mut host, "/sys/bus/pci/drivers/vfio-pci/unbind", "0000:01:00.0").unwrap();
    assert_eq!(attribute(&host, "sriov_numvfs"), "0\n");
    assert_eq!(store(&mut host, &numvfs, "2"), Err(Errno::ENOENT));
    let mut native = lab(concat!(
        "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\ndriver = \"nvme\"\n",
        "total_vfs = 4\nvfs = 2\n"
    ));
    store(&mut native, "/sys/bus/pci/drivers/nvme/unbind", "0000:01:00.0").unwrap();
    assert_eq!(attribute(&native, "sriov_numvfs"), "2\n");
    store(&mut native, &format!("{DEVICE}/driver_override"), "vfio-pci").unwrap();
    assert_eq!(store(&mut native, "/sys/bus/pci/drivers/vfio-pci/bind", "0000:01:00.0"), Err(Errno::EBUSY));
    assert_eq!(store(&mut native, &numvfs, "0"), Err(Errno::ENOENT));

    let mut refused = lab("[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\ntotal_vfs = 4\n");
    assert_eq!(store(&mut refused, &numvfs, "1"), Err(Errno::ENOENT));
}

#[test]
fn two_devices_at_one_address_are_refused() {
    let text = "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\n";
    let error = Host::new(Lab::parse("x.toml", text).unwrap(), SimPlatform::new(1), Box::new(SimStorage)).unwrap_err();
    assert!(error.to_string().starts_with("x.toml:4:1: `addr`: 0000:01:00.0 is in use"), "{error}");
}

#[test]
fn a_cycle_of_ports_is_refused_and_named() {
    let text = concat!(
        "[[port]]\naddr = \"01:00.0\"\nkind = \"upstream\"\nbus = 2\n",
        "[[port]]\naddr = \"02:00.0\"\nkind = \"downstream\"\nbus = 1\n"
    );
    let error = Host::new(Lab::parse("x.toml", text).unwrap(), SimPlatform::new(1), Box::new(SimStorage)).unwrap_err();
    assert!(error.to_string().starts_with("x.toml:"), "{error}");
}

#[test]
fn every_example_lab_can_be_built() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../labs");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        let lab = Lab::parse(&name, &std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        // One may be about the IOMMU alone.
        let empty = lab.devices.is_empty();
        let host = Host::new(lab, SimPlatform::new(1), Box::new(SimStorage)).unwrap_or_else(|e| panic!("{e}"));
        assert!(empty || host.functions().iter().any(|f| f.driver.as_deref() == Some("vfio-pci")), "{name}");
        count += 1;
    }
    assert!(count >= 5);
}

/// ERR-068, ERR-070: functions with the resets that the lab file gives them;
/// without any, two on a bus have no `reset_method` at all.
#[test]
fn functions_with_resets_as_told() {
    let lab = |resets: &str, both: bool| {
        let device =
            |n| format!("[[device]]\nmodel = \"nvme\"\nsize = \"1M\"\naddr = \"01:00.{n}\"\nresets = \"{resets}\"\n");
        let text = if both { [device(0), device(1)].concat() } else { device(0) };
        Lab::parse("test", &text)
    };
    let methods = |resets: &str, both| {
        let host = Host::new(lab(resets, both).unwrap(), SimPlatform::new(1), Box::new(SimStorage)).unwrap();
        match host.tree().get(&format!("{DEVICE}/reset_method")) {
            Some(Entry::File { content, .. }) => String::from_utf8(content.clone()).unwrap(),
            _ => String::new(),
        }
    };
    assert_eq!(methods("flr pm", false), "flr pm bus\n");
    assert_eq!(methods("pm", true), "pm\n");
    assert_eq!(methods("none", false), "bus\n");
    assert_eq!(methods("none", true), "");
    let complaint = lab("bus", false).unwrap_err().to_string();
    assert!(complaint.starts_with("test:5:10: `resets`: `bus` is not a reset of a function"), "{complaint}");
}

/// GRP-042: a bus is reset by who has `CAP_SYS_ADMIN`, which is asked before
/// what was written is looked at; other attributes go by their mode.
#[test]
fn resetting_a_bus_takes_a_capability() {
    let (host, client) = (one(), caller::testing::Client::new(1));
    let below = format!("{PORT}/reset_subordinate");
    assert_eq!(host.may_store(&below, &client), Err(Errno::EPERM));
    assert_eq!(host.may_store(&format!("{DEVICE}/reset"), &client), Ok(()));
    client.capabilities.borrow_mut().push(caller::Capability::SysAdmin);
    assert_eq!(host.may_store(&below, &client), Ok(()));
}

/// VDPA-1.1, VDPA-1.3, VDPA-1.7, VDPA-1.9, VDPA-9.3, VDPA-9.4, VDPA-10.3, VNET-6.9: the
/// lab's vdpa devices, and one that comes and goes.
#[test]
fn vdpa_devices_have_nodes() {
    let lab = Lab::parse("lab", "[[vdpa]]\nmodel = \"net\"\n[[vdpa]]\nmodel = \"blk\"\nname = \"disk\"\n").unwrap();
    let mut host = host::Host::new(lab, SimPlatform::new(1), Box::new(SimStorage)).unwrap();
    let node = |host: &host::Host, path: &str| host.tree().get(path).cloned();
    assert_eq!(node(&host, "/dev/vhost-vdpa-1"), Some(Entry::Device(Node::VhostVdpa(1))));
    let link = node(&host, "/sys/bus/vdpa/devices/disk");
    assert_eq!(link, Some(Entry::Link("../../../devices/vdpasim_blk/disk".into())));
    assert!(node(&host, "/sys/devices/vdpasim_net/vdpa0/vhost-vdpa-0/dev").is_some());
    let devices = host.vdpa_devices();
    assert_eq!((devices[1].kind.as_str(), devices[1].max_vqs, devices[1].max_vq_size), ("network", 3, QUEUE_SIZE));
    assert_eq!((devices[0].kind.as_str(), devices[0].mgmtdev.as_str()), ("block", "vdpasim_blk"));
    assert_eq!((devices[0].vendor_id, devices[1].vendor_id), (0, 0), "the parent says it");
    // vdpa_sim's disk has 0x40000 sectors.
    assert_eq!(host.vdpa_config("disk").unwrap().capacity, Some(0x40000));

    let client = caller::testing::Client::new(1);
    let file = host.open(Node::VhostVdpa(0), &client).unwrap();
    assert_eq!(host.open(Node::VhostVdpa(0), &client), Err(Errno::EBUSY));
    assert_eq!(host.read(file, 0, 0x1000_0000, 8, &client), Err(Errno::EINVAL));
    assert_eq!(host.mmap(file, 0, 4096, true, false), Err(Errno::EINVAL));
    assert_eq!(
        host.map_doorbell(file, 0, 4096, true, false),
        Err(Errno::from_raw(524)),
        "programs go on with the eventfd"
    );

    let generation = host.generation();
    assert_eq!(host.vdpa_add("blk,name=more,size=1M"), Ok("more".into()));
    assert!(host.vdpa_add("blk,name=more").is_err_and(|error| error.to_string() == "more: EEXIST"));
    assert!(host.generation() > generation && node(&host, "/dev/vhost-vdpa-2").is_some());
    let (tell, gone) = std::sync::mpsc::channel();
    for name in ["more", "vdpa0"] {
        let tell = tell.clone();
        assert_eq!(host.vdpa_delete(name, move || tell.send(name).unwrap()), Ok(()));
    }
    assert_eq!(gone.try_iter().collect::<Vec<_>>(), ["more"], "the other one is open");
    assert!(node(&host, "/dev/vhost-vdpa-0").is_none() && host.vdpa_exists("vdpa0"));
    host.release(file);
    assert!(!host.vdpa_exists("vdpa0"));
    assert_eq!(gone.try_iter().collect::<Vec<_>>(), ["vdpa0"]);
}
