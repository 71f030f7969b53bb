// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Addresses for BARs and bridge windows.
//!
//! Each bus is packed from the bottom up, largest alignment first, so a
//! bridge's window is as large as what is behind it; then the root buses get
//! their share of the machine's apertures and addresses go down the tree.
//! 64-bit BARs go to the prefetchable 64-bit windows if they are
//! prefetchable, or too big for the space below 4 GiB (which PCI Express
//! allows: its memory requests carry their length).

use std::fmt;

use crate::spec::Bar;
use crate::{Address, BarKind, Fabric, FabricError, cap};

/// Memory below 4 GiB that functions may have; the message window and the
/// firmware lie above.
const MEMORY: (u64, u64) = (0xc000_0000, 0xfebf_ffff);
/// Memory above 4 GiB.
const PREFETCH: (u64, u64) = (0x3800_0000_0000, 0x3fff_ffff_ffff);
/// I/O ports.
const IO: (u64, u64) = (0x1000, 0xffff);
/// 64-bit BARs from this size on go above 4 GiB; all of them if the rest does
/// not fit below.
const BIG: u64 = 64 << 20;

/// Resources of a function: 6 BARs, ROM, 6 VF BARs, 4 bridge windows.
pub(crate) const RESOURCES: usize = 17;
/// Index of the expansion ROM.
pub(crate) const ROM: usize = 6;
/// Index of the first VF BAR.
pub(crate) const IOV: usize = 7;
/// Index of the first bridge window.
pub(crate) const WINDOW: usize = 13;

/// Resource flag: I/O ports (GRP-037).
pub const IORESOURCE_IO: u64 = 0x100;
/// Resource flag: memory (GRP-037).
pub const IORESOURCE_MEM: u64 = 0x200;
/// Resource flag: prefetchable (GRP-037).
pub const IORESOURCE_PREFETCH: u64 = 0x2000;
/// Resource flag: read only; set for ROMs.
pub const IORESOURCE_READONLY: u64 = 0x4000;
/// Resource flag: aligned to its size; set for BARs.
pub const IORESOURCE_SIZEALIGN: u64 = 0x4_0000;
/// Resource flag: 64-bit memory (GRP-037).
pub const IORESOURCE_MEM_64: u64 = 0x10_0000;
/// Resource flag: no address could be assigned.
pub const IORESOURCE_UNSET: u64 = 0x2000_0000;

/// One line of the sysfs file `resource`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resource {
    /// First address.
    pub start: u64,
    /// Last address.
    pub end: u64,
    /// `IORESOURCE_…` bits; the low 4 bits are those of the register.
    pub flags: u64,
}

impl Resource {
    /// Bytes; 0 for a resource that is not there.
    #[must_use]
    pub const fn len(&self) -> u64 {
        if self.flags == 0 { 0 } else { (self.end - self.start).saturating_add(1) }
    }

    /// Whether it is not there.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.flags == 0
    }
}

/// As the sysfs file has it, without the newline (GRP-037).
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} {:#018x} {:#018x}", self.start, self.end, self.flags)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Io,
    Memory,
    Prefetch,
}

const CLASSES: [Class; 3] = [Class::Io, Class::Memory, Class::Prefetch];

impl Class {
    fn of(bar: &Bar, big: u64) -> Class {
        match bar.kind {
            BarKind::Io => Class::Io,
            BarKind::Memory32 { .. } => Class::Memory,
            BarKind::Memory64 { prefetchable } if prefetchable || bar.size >= big => Class::Prefetch,
            BarKind::Memory64 { .. } => Class::Memory,
        }
    }

    /// Granularity of a bridge window.
    fn step(self) -> u64 {
        if self == Class::Io { 0x1000 } else { 0x10_0000 }
    }

    fn window(self) -> usize {
        WINDOW
            + match self {
                Class::Io => 0,
                Class::Memory => 1,
                Class::Prefetch => 2,
            }
    }

    fn aperture(self) -> (u64, u64) {
        match self {
            Class::Io => IO,
            Class::Memory => MEMORY,
            Class::Prefetch => PREFETCH,
        }
    }
}

/// Something that wants addresses.
struct Need {
    address: Address,
    resource: usize,
    size: u64,
    align: u64,
}

fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align)
}

fn bar_flags(bar: &Bar) -> u64 {
    let prefetch = |yes| if yes { IORESOURCE_PREFETCH } else { 0 };
    u64::from(bar.type_bits())
        | IORESOURCE_SIZEALIGN
        | match bar.kind {
            BarKind::Io => IORESOURCE_IO,
            BarKind::Memory32 { prefetchable } => IORESOURCE_MEM | prefetch(prefetchable),
            BarKind::Memory64 { prefetchable } => IORESOURCE_MEM | IORESOURCE_MEM_64 | prefetch(prefetchable),
        }
}

impl Fabric {
    /// Resources of a function: `BARs[0..6]`, ROM, VF BARs, and for a bridge
    /// its windows for I/O, memory, prefetchable memory and a fourth that PCI
    /// has not (GRP-037).
    #[must_use]
    pub fn resources(&self, address: Address) -> &[Resource] {
        let lines = if self.is_bridge(address) { RESOURCES } else { WINDOW };
        self.nodes.get(&address).and_then(|node| node.resources.get(..lines)).unwrap_or(&[])
    }

    /// Gives every BAR and window its address and writes them to the
    /// registers.
    pub(crate) fn assign_resources(&mut self) -> Result<(), FabricError> {
        if self.assign_all(BIG).is_err() {
            for node in self.nodes.values_mut() {
                node.resources = Default::default();
            }
            self.assign_all(0)?;
        }
        let addresses: Vec<Address> = self.functions.keys().copied().collect();
        for address in addresses {
            self.write_resources(address);
        }
        Ok(())
    }

    fn assign_all(&mut self, big: u64) -> Result<(), FabricError> {
        let roots: Vec<(u16, u8)> =
            self.buses.values().filter(|b| b.parent.is_none()).map(|b| (b.segment, b.number)).collect();
        for class in CLASSES {
            let (mut next, last) = class.aperture();
            for root in &roots {
                next = self.assign_bus(*root, class, big, next, last)?;
            }
        }
        Ok(())
    }

    /// What is on a bus, most aligned first.
    fn needs(&self, bus: (u16, u8), class: Class, big: u64) -> Result<Vec<Need>, FabricError> {
        let mut needs = Vec::new();
        let devices = self.buses.get(&bus).map(|bus| bus.devices.as_slice()).unwrap_or_default();
        for &address in devices {
            let Some(spec) = self.functions.get(&address).map(|f| f.spec()) else { continue };
            let mut need = |resource, size, align| needs.push(Need { address, resource, size, align });
            for (i, bar) in spec.bars.iter().enumerate() {
                if let Some(bar) = bar.as_ref().filter(|bar| Class::of(bar, big) == class) {
                    need(i, bar.size, bar.size);
                }
            }
            if class == Class::Memory && spec.rom_size() != 0 {
                need(ROM, spec.rom_size(), spec.rom_size());
            }
            if spec.total_vfs != 0 {
                for (i, bar) in spec.virtual_function().bars.iter().enumerate() {
                    if let Some(bar) = bar.as_ref().filter(|bar| Class::of(bar, big) == class) {
                        let size = bar.size.checked_mul(u64::from(spec.total_vfs));
                        need(IOV + i, size.ok_or(FabricError::OutOfSpace { address, size: bar.size })?, bar.size);
                    }
                }
            }
            if let Some(below) = self.nodes.get(&address).and_then(|node| node.secondary) {
                let inner = self.needs((address.segment, below), class, big)?;
                if !inner.is_empty() {
                    let align = inner.iter().map(|n| n.align).max().unwrap_or(1).max(class.step());
                    let size = pack(&inner)
                        .and_then(|size| align_up(size, class.step()))
                        .ok_or(FabricError::OutOfSpace { address, size: u64::MAX })?;
                    needs.push(Need { address, resource: class.window(), size, align });
                }
            }
        }
        needs.sort_by_key(|need| std::cmp::Reverse(need.align));
        Ok(needs)
    }

    /// Places what is on a bus from `next` on, and what is behind its bridges;
    /// the first address left. I/O that does not fit stays without an address.
    fn assign_bus(
        &mut self,
        bus: (u16, u8),
        class: Class,
        big: u64,
        mut next: u64,
        last: u64,
    ) -> Result<u64, FabricError> {
        for need in self.needs(bus, class, big)? {
            let start = align_up(next, need.align);
            let end = start.and_then(|start| start.checked_add(need.size - 1));
            let (Some(start), Some(end)) = (start, end.filter(|end| *end <= last)) else {
                if class == Class::Io {
                    continue;
                }
                return Err(FabricError::OutOfSpace { address: need.address, size: need.size });
            };
            next = end + 1;
            if let Some(node) = self.nodes.get_mut(&need.address) {
                node.resources[need.resource] = Resource { start, end, flags: 0 };
                if need.resource == class.window()
                    && let Some(below) = node.secondary
                {
                    self.assign_bus((need.address.segment, below), class, big, start, end)?;
                }
            }
        }
        Ok(next)
    }

    /// Sets flags and registers of a function from its resources.
    fn write_resources(&mut self, address: Address) {
        let (Some(function), Some(node)) = (self.functions.get_mut(&address), self.nodes.get_mut(&address)) else {
            return;
        };
        let spec = function.spec().clone();
        let vf_bars = if spec.total_vfs == 0 { Default::default() } else { spec.virtual_function().bars };
        let sriov = function.extended_capability(cap::EXT_SRIOV);
        for (i, bar) in spec.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            settle(&mut node.resources[i], bar_flags(bar), bar.size);
            write_base(function, cap::BAR0 + 4 * i as u16, node.resources[i].start, bar);
        }
        for (i, bar) in vf_bars.iter().enumerate() {
            let (Some(bar), Some(sriov)) = (bar, sriov) else { continue };
            let resource = &mut node.resources[IOV + i];
            settle(resource, bar_flags(bar), bar.size.saturating_mul(u64::from(spec.total_vfs)));
            write_base(function, sriov + 0x24 + 4 * i as u16, resource.start, bar);
        }
        if spec.rom_size() != 0 {
            let flags = IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_READONLY | IORESOURCE_SIZEALIGN;
            settle(&mut node.resources[ROM], flags, spec.rom_size());
            let offset = if spec.port_type.is_bridge() { cap::BRIDGE_ROM } else { cap::ROM };
            function.write(offset, 4, node.resources[ROM].start as u32);
        }
        if node.secondary.is_none() {
            return;
        }
        // A window that is not there is closed by a base above its limit.
        let io = node.resources[WINDOW];
        if io.end == 0 {
            function.write(0x1c, 2, 0x00f0);
        } else {
            function.write(0x1c, 2, (io.start >> 8) as u32 & 0xf0 | (io.end as u32 & 0xf000));
            function.write(0x30, 4, (io.start >> 16) as u32 | (io.end as u32 & 0xffff_0000));
            node.resources[WINDOW].flags = IORESOURCE_IO | 1;
        }
        let memory = node.resources[WINDOW + 1];
        if memory.end == 0 {
            function.write(0x20, 4, 0x0000_fff0);
        } else {
            function.write(0x20, 4, (memory.start >> 16) as u32 & 0xfff0 | memory.end as u32 & 0xfff0_0000);
            node.resources[WINDOW + 1].flags = IORESOURCE_MEM;
        }
        let prefetch = node.resources[WINDOW + 2];
        if prefetch.end == 0 {
            function.write(0x24, 4, 0x0000_fff0);
        } else {
            function.write(0x24, 4, (prefetch.start >> 16) as u32 & 0xfff0 | prefetch.end as u32 & 0xfff0_0000);
            function.write(0x28, 4, (prefetch.start >> 32) as u32);
            function.write(0x2c, 4, (prefetch.end >> 32) as u32);
            node.resources[WINDOW + 2].flags = IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_MEM_64 | 1;
        }
    }
}

/// Bytes from an aligned start to the end of the last of `needs`.
fn pack(needs: &[Need]) -> Option<u64> {
    needs.iter().try_fold(0u64, |at, need| align_up(at, need.align)?.checked_add(need.size))
}

/// Completes a resource that has its addresses, or says that it has none.
fn settle(resource: &mut Resource, flags: u64, size: u64) {
    *resource = match resource.end {
        0 => Resource { start: 0, end: size - 1, flags: flags | IORESOURCE_UNSET },
        _ => Resource { flags, ..*resource },
    };
}

fn write_base(function: &mut crate::Function, offset: u16, start: u64, bar: &Bar) {
    function.write(offset, 4, start as u32);
    if bar.is_64bit() {
        function.write(offset + 4, 4, (start >> 32) as u32);
    }
}
