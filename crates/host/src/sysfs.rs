// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `/dev` and `/sys` show of a lab (iommu-groups.md section 2).
//!
//! Programs find devices by these files before they make a single VFIO call:
//! QEMU by `iommu_group` and `subsystem`, DPDK by listing
//! `/sys/bus/pci/devices`, Linux's selftests by `iommu_group` and `driver`.

use std::collections::BTreeSet;

use device::{Board, Driver};
use pci::aer::spec::{CORRECTABLE_NAMES, UNCORRECTABLE_NAMES};
use pci::recovery::ErrorService;
use pci::{Address, Function, PortType};

use crate::mediated;
use crate::tree::{NODE_DEVICE, Node, Tree};

pub(crate) const DEVICES: &str = "/sys/devices";
const BUS: &str = "/sys/bus/pci";
pub(crate) const GROUPS: &str = "/sys/kernel/iommu_groups";
const CDEVS: &str = "/sys/class/vfio-dev";
const IOMMU: &str = "/sys/devices/virtual/iommu/dmar0";

/// What sysfs shows besides the board.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) vfio: &'a vfio::Vfio,
    pub(crate) options: &'a vfio::Options,
    pub(crate) iommu: iommufd::LabIommu,
    pub(crate) drivers: &'a [String],
    pub(crate) errors: &'a ErrorService,
    /// Whether `pci_reset_group` is shown.
    pub(crate) reset_groups: bool,
    /// Whether Linux's `aer_inject` is loaded.
    pub(crate) injector: bool,
}

/// The tree of a board.
pub(crate) fn tree(board: &Board, facts: &Facts<'_>) -> Tree {
    let mut tree = Tree::default();
    for own in
        [BUS, GROUPS, "/sys/class/iommu", "/sys/class/vfio", CDEVS, "/sys/devices/virtual/vfio", IOMMU, "/dev/vfio"]
    {
        tree.own(own);
    }
    bus(&mut tree, facts);
    modules(&mut tree, facts.options);
    iommu(&mut tree, &facts.iommu);
    tree.device("/dev/vfio/vfio", Node::VfioContainer);
    tree.device("/dev/iommu", Node::Iommufd);
    if facts.injector {
        injector(&mut tree);
    }
    for (address, function) in board.fabric.functions() {
        if let Some(part) = board.mediated(address) {
            let dir = mediated::show(&mut tree, board, address, &path(board, part.parent));
            let number = facts.vfio.cdev_number(address).filter(|_| !board.is_leaving(address));
            if let (Some(dir), Some(number)) = (dir, number) {
                add_cdev(&mut tree, &dir, number);
            }
            continue;
        }
        add_function(&mut tree, board, facts, address, function);
        if let Some(number) = facts.vfio.cdev_number(address).filter(|_| !board.is_leaving(address)) {
            add_cdev(&mut tree, &path(board, address), number);
        }
    }
    tree
}

/// What the tree has of these functions.
pub(crate) fn functions(board: &Board, facts: &Facts<'_>, addresses: &BTreeSet<Address>) -> Tree {
    let mut tree = Tree::default();
    for address in addresses {
        if let Some(function) = board.fabric.function(*address) {
            add_function(&mut tree, board, facts, *address, function);
        }
    }
    tree
}

/// Directory of a function below `/sys/devices`: the path of bridges to it.
fn path(board: &Board, address: Address) -> String {
    match board.fabric.parent(address) {
        Some(bridge) => format!("{}/{address}", path(board, bridge)),
        None => format!("{DEVICES}/pci{:04x}:{:02x}/{address}", address.segment, address.bus),
    }
}

/// The root bus that a function hangs from.
fn root_bus(board: &Board, address: Address) -> u8 {
    board.fabric.parent(address).map_or(address.bus, |bridge| root_bus(board, bridge))
}

fn bus(tree: &mut Tree, facts: &Facts<'_>) {
    tree.own(&format!("{BUS}/devices"));
    tree.own(&format!("{BUS}/slots"));
    tree.attribute(format!("{BUS}/drivers_autoprobe"), Some("1\n".into()));
    tree.attribute(format!("{BUS}/drivers_probe"), None);
    tree.attribute(format!("{BUS}/rescan"), None);
    for driver in facts.drivers {
        let path = format!("{BUS}/drivers/{driver}");
        for file in ["bind", "unbind", "new_id", "remove_id", "uevent"] {
            tree.attribute(format!("{path}/{file}"), None);
        }
        let module = driver.replace('-', "_");
        if ["vfio_pci"].contains(&module.as_str()) {
            tree.link(&format!("{path}/module"), &format!("/sys/module/{module}"));
        }
    }
}

fn modules(tree: &mut Tree, options: &vfio::Options) {
    let flag = |on: bool| if on { "Y\n" } else { "N\n" };
    let parameters: [(&str, &[(&str, String)]); 4] = [
        ("vfio", &[("enable_unsafe_noiommu_mode", flag(options.enable_unsafe_noiommu_mode).into())]),
        (
            "vfio_pci",
            &[
                ("disable_idle_d3", flag(options.disable_idle_d3).into()),
                ("disable_vga", flag(false).into()),
                ("enable_sriov", flag(options.enable_sriov).into()),
                ("disable_denylist", flag(false).into()),
                ("ids", "\n".into()),
                ("nointxmask", flag(false).into()),
            ],
        ),
        (
            "vfio_iommu_type1",
            &[
                ("allow_unsafe_interrupts", flag(options.allow_unsafe_interrupts).into()),
                ("disable_hugepages", flag(false).into()),
                ("dma_entry_limit", format!("{}\n", options.dma_entry_limit)),
            ],
        ),
        ("vfio_pci_core", &[]),
    ];
    for (module, parameters) in parameters {
        let path = format!("/sys/module/{module}");
        tree.own(&path);
        tree.text(format!("{path}/initstate"), "live\n");
        tree.text(format!("{path}/refcnt"), "0\n");
        for (name, value) in parameters {
            tree.text(format!("{path}/parameters/{name}"), value.clone());
        }
    }
}

/// DPDK takes the width of I/O virtual addresses from VT-d's capability
/// register: bits 21:16 hold it minus one (GRP-081). `GET_HW_INFO` says the same.
fn iommu(tree: &mut Tree, iommu: &iommufd::LabIommu) {
    let (cap, ecap) = iommu.registers();
    tree.text(format!("{IOMMU}/intel-iommu/cap"), format!("{cap:x}\n"));
    tree.text(format!("{IOMMU}/intel-iommu/ecap"), format!("{ecap:x}\n"));
    tree.text(format!("{IOMMU}/intel-iommu/version"), "1:0\n");
    tree.text(format!("{IOMMU}/intel-iommu/address"), "fed90000\n");
    tree.text(format!("{IOMMU}/intel-iommu/domains_supported"), "65536\n");
    tree.link("/sys/class/iommu/dmar0", IOMMU);
}

/// ERR-059: the module, and the miscellaneous device that is its node.
fn injector(tree: &mut Tree) {
    const DEVICE: &str = "/sys/devices/virtual/misc/aer_inject";
    let (major, minor) = NODE_DEVICE;
    tree.node(Node::AerInject);
    tree.own("/sys/module/aer_inject");
    tree.text("/sys/module/aer_inject/initstate".into(), "live\n");
    tree.text("/sys/module/aer_inject/parameters/aer_mask_override".into(), "N\n");
    tree.text(format!("{DEVICE}/dev"), format!("{major}:{minor}\n"));
    tree.attribute(format!("{DEVICE}/uevent"), Some(format!("MAJOR={major}\nMINOR={minor}\nDEVNAME=aer_inject\n")));
    tree.link("/sys/class/misc/aer_inject", DEVICE);
    tree.link(&format!("{DEVICE}/subsystem"), "/sys/class/misc");
}

fn add_function(tree: &mut Tree, board: &Board, facts: &Facts<'_>, address: Address, function: &Function) {
    let dir = path(board, address);
    let spec = function.spec();
    tree.own(&format!("{DEVICES}/pci{:04x}:{:02x}", address.segment, root_bus(board, address)));
    tree.link(&format!("{BUS}/devices/{address}"), &dir);
    tree.link(&format!("{dir}/subsystem"), BUS);

    // GRP-035, GRP-036
    let number = |tree: &mut Tree, name: &str, value: String| tree.text(format!("{dir}/{name}"), value + "\n");
    number(tree, "vendor", format!("0x{:04x}", spec.vendor));
    number(tree, "device", format!("0x{:04x}", spec.device));
    number(tree, "subsystem_vendor", format!("0x{:04x}", spec.subsystem_vendor));
    number(tree, "subsystem_device", format!("0x{:04x}", spec.subsystem_device));
    number(tree, "class", spec.class_text());
    number(tree, "revision", format!("0x{:02x}", spec.revision));
    number(tree, "irq", if spec.interrupt_pin == 0 { "0".into() } else { "11".into() });
    number(tree, "local_cpus", "1".into());
    number(tree, "local_cpulist", "0".into());
    number(tree, "modalias", spec.modalias());
    number(tree, "dma_mask_bits", "64".into());
    number(tree, "consistent_dma_mask_bits", "64".into());
    number(tree, "ari_enabled", "0".into());
    number(tree, "power_state", function.power_text().into());
    number(tree, "power/runtime_status", "active".into());
    tree.attribute(format!("{dir}/numa_node"), Some("-1\n".into()));
    tree.attribute(format!("{dir}/power/control"), Some("on\n".into()));
    tree.attribute(format!("{dir}/d3cold_allowed"), Some("1\n".into()));
    tree.attribute(format!("{dir}/msi_bus"), Some("1\n".into()));
    tree.attribute(format!("{dir}/broken_parity_status"), Some("0\n".into()));
    let slot = board.slots.get(&address);
    let enabled = slot.is_some_and(|s| s.driver.is_some());
    tree.attribute(format!("{dir}/enable"), Some(format!("{}\n", u8::from(enabled))));
    tree.attribute(format!("{dir}/remove"), None);
    tree.attribute(format!("{dir}/rescan"), None);

    // GRP-037, GRP-039
    tree.text(format!("{dir}/resource"), board.fabric.resource_lines(address).join("\n") + "\n");
    tree.binary(format!("{dir}/config"), config(function), 0o644);

    // GRP-034
    let name = slot.and_then(|s| s.driver_override.as_deref()).unwrap_or("(null)");
    tree.attribute(format!("{dir}/driver_override"), Some(format!("{name}\n")));

    // Extension: functions with the same port here are reset together.
    if facts.reset_groups
        && let Some(port) = board.fabric.parent(address)
        && board.fabric.hot_reset_scope(address).is_ok()
    {
        number(tree, "pci_reset_group", port.to_string());
    }

    // GRP-033
    let driver = slot.and_then(|s| s.driver.as_ref());
    // The links go first when a driver is taken away.
    if let Some(driver) = driver.filter(|_| !board.is_leaving(address)) {
        let of = format!("{BUS}/drivers/{}", driver.name());
        tree.link(&format!("{dir}/driver"), &of);
        tree.link(&format!("{of}/{address}"), &dir);
    }
    let mut event = String::new();
    if let Some(driver) = driver {
        event += &format!("DRIVER={}\n", driver.name());
    }
    event += &format!(
        "PCI_CLASS={:X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\nPCI_SLOT_NAME={address}\nMODALIAS={}\n",
        spec.class,
        spec.vendor,
        spec.device,
        spec.subsystem_vendor,
        spec.subsystem_device,
        spec.modalias()
    );
    tree.attribute(format!("{dir}/uevent"), Some(event));

    // GRP-032, GRP-053 to GRP-056, GRP-060
    if let Some(group) = board.fabric.group(address) {
        let of = format!("{GROUPS}/{group}");
        tree.link(&format!("{dir}/iommu_group"), &of);
        tree.link(&format!("{of}/devices/{address}"), &dir);
        let noiommu = facts.vfio.is_noiommu(group);
        if noiommu {
            // GRP-054, GRP-057
            tree.text(format!("{of}/name"), "vfio-noiommu\n");
            tree.text(format!("{of}/reserved_regions"), "");
            tree.attribute(format!("{of}/type"), Some("unknown\n".into()));
        } else {
            tree.link(&format!("{dir}/iommu"), IOMMU);
            tree.link(&format!("{IOMMU}/devices/{address}"), &dir);
            tree.text(format!("{of}/reserved_regions"), "0x00000000fee00000 0x00000000feefffff msi\n");
            tree.attribute(format!("{of}/type"), Some("DMA-FQ\n".into()));
        }
        if driver == Some(&Driver::VfioPci) {
            let node = if noiommu { Node::VfioNoIommuGroup(group) } else { Node::VfioGroup(group) };
            let name = if noiommu { format!("noiommu-{group}") } else { group.to_string() };
            tree.device(&format!("/dev/vfio/{name}"), node);
            tree.link(&format!("/sys/class/vfio/{name}"), &format!("{DEVICES}/virtual/vfio/{name}"));
            tree.text(format!("{DEVICES}/virtual/vfio/{name}/uevent"), format!("DEVNAME=vfio/{name}\n"));
            tree.link(&format!("{DEVICES}/virtual/vfio/{name}/subsystem"), "/sys/class/vfio");
        }
    }

    // GRP-041
    if !board.fabric.reset_methods(address).is_empty() {
        let methods = board.reset_methods(address);
        let names: Vec<String> = methods.iter().map(ToString::to_string).collect();
        let end = if names.is_empty() { "" } else { "\n" };
        tree.attribute(format!("{dir}/reset"), None);
        tree.attribute(format!("{dir}/reset_method"), Some(names.join(" ") + end));
    }

    // GRP-042
    if board.fabric.is_bridge(address) {
        tree.attribute(format!("{dir}/reset_subordinate"), None);
    }

    // GRP-038: not for VFIO users; there is nothing behind them.
    for bar in spec.bars.iter().enumerate().filter_map(|(n, bar)| bar.as_ref().map(|_| n)) {
        tree.binary(format!("{dir}/resource{bar}"), Vec::new(), 0o600);
    }

    if spec.aer {
        error_counters(tree, facts.errors, address, function, &dir);
    }

    // GRP-044
    for (prefix, link) in [("current", function.current_link()), ("max", function.max_link())] {
        if let Some((speed, width)) = link {
            tree.text(format!("{dir}/{prefix}_link_speed"), format!("{speed}\n"));
            tree.text(format!("{dir}/{prefix}_link_width"), format!("{width}\n"));
        }
    }
    sriov(tree, board, address, function, &dir);
}

/// GRP-047, GRP-058, GRP-059
fn add_cdev(tree: &mut Tree, device: &str, number: u32) {
    let name = format!("vfio{number}");
    let dir = format!("{device}/vfio-dev/{name}");
    let (major, minor) = NODE_DEVICE;
    tree.text(format!("{dir}/dev"), format!("{major}:{minor}\n"));
    let event = format!("MAJOR={major}\nMINOR={minor}\nDEVNAME=vfio/devices/{name}\n");
    tree.attribute(format!("{dir}/uevent"), Some(event));
    tree.link(&format!("{dir}/device"), device);
    tree.link(&format!("{dir}/subsystem"), CDEVS);
    tree.link(&format!("{CDEVS}/{name}"), &dir);
    tree.device(&format!("/dev/vfio/devices/{name}"), Node::VfioCdev(number));
}

/// GRP-045, ERR-057
fn error_counters(tree: &mut Tree, errors: &ErrorService, address: Address, function: &Function, dir: &str) {
    let counters = errors.counters(address);
    let file = |names: &[(u8, &str)], counts: &[u64], total: &str, sum: u64| {
        let count = |bit: u8| counts.get(usize::from(bit)).copied().unwrap_or(0);
        let lines = names.iter().map(|(bit, name)| format!("{name} {}\n", count(*bit)));
        lines.chain([format!("TOTAL_ERR_{total} {sum}\n")]).collect::<String>()
    };
    let [correctable, nonfatal, fatal] = counters.total;
    let text = file(&CORRECTABLE_NAMES, &counters.correctable, "COR", correctable);
    tree.text(format!("{dir}/aer_dev_correctable"), text);
    let text = file(&UNCORRECTABLE_NAMES, &counters.nonfatal, "NONFATAL", nonfatal);
    tree.text(format!("{dir}/aer_dev_nonfatal"), text);
    tree.text(format!("{dir}/aer_dev_fatal"), file(&UNCORRECTABLE_NAMES, &counters.fatal, "FATAL", fatal));
    for kind in ["correctable", "nonfatal"] {
        // In ticks of a kernel with HZ=250, as Linux prints it.
        tree.text(format!("{dir}/aer/{kind}_ratelimit_interval_ms"), "1250\n");
        tree.text(format!("{dir}/aer/{kind}_ratelimit_burst"), "10\n");
    }
    if matches!(function.spec().port_type, PortType::RootPort | PortType::EventCollector) {
        let [correctable, nonfatal, fatal] = errors.root_counters(address);
        for (kind, count) in [("cor", correctable), ("nonfatal", nonfatal), ("fatal", fatal)] {
            tree.text(format!("{dir}/aer_rootport_total_err_{kind}"), format!("{count}\n"));
        }
    }
}

/// Id of the SR-IOV extended capability.
const SRIOV: u16 = 0x10;

/// GRP-046, GRP-049
fn sriov(tree: &mut Tree, board: &Board, address: Address, function: &Function, dir: &str) {
    if let Some(pf) = board.fabric.physical_function(address) {
        tree.link(&format!("{dir}/physfn"), &path(board, pf));
    }
    let (Some(capability), total) = (function.extended_capability(SRIOV), function.spec().total_vfs) else {
        return;
    };
    let word = |offset| function.read(capability + offset, 2);
    let vfs = board.fabric.virtual_functions(address);
    tree.text(format!("{dir}/sriov_totalvfs"), format!("{}\n", total));
    tree.text(format!("{dir}/sriov_offset"), format!("{}\n", word(0x14)));
    tree.text(format!("{dir}/sriov_stride"), format!("{}\n", word(0x16)));
    tree.text(format!("{dir}/sriov_vf_device"), format!("{:x}\n", word(0x1a)));
    tree.text(format!("{dir}/sriov_vf_total_msix"), "0\n");
    tree.attribute(format!("{dir}/sriov_numvfs"), Some(format!("{}\n", vfs.len())));
    let autoprobe = board.slots.get(&address).is_none_or(|s| s.sriov_autoprobe);
    tree.attribute(format!("{dir}/sriov_drivers_autoprobe"), Some(format!("{}\n", u8::from(autoprobe))));
    for (n, vf) in vfs.iter().enumerate() {
        tree.link(&format!("{dir}/virtfn{n}"), &path(board, *vf));
    }
}

fn config(function: &Function) -> Vec<u8> {
    (0..function.size()).map(|offset| function.read(offset, 1) as u8).collect()
}
