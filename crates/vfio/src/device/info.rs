// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device says of itself: GET_INFO, GET_REGION_INFO, GET_IRQ_INFO
//! (vfio-api.md, sections 6.1 to 6.3).

use ::device::Board;
use caller::Caller;
use pci::{Address, Function, PortType, cap};
use uapi::Errno;
use uapi::vfio::device::{
    AtomicFlags, CAP_PCI_ATOMIC_COMP, Info, InfoFlags, IrqInfo, IrqInfoFlags, REGION_CAP_MSIX_MAPPABLE, RegionFlags,
    RegionInfo, irq_index, region_index,
};
use uapi::vfio::recovery::INFO_SHIFT;

use super::state::Device;
use crate::args::{self, InfoChain};

impl Device {
    /// API-125 to API-128
    pub(super) fn get_info(&self, board: &Board, caller: &dyn Caller, arg: u64) -> Result<(), Errno> {
        let mut info: Info = args::read(caller, arg, Info::MINSZ)?;
        let provided = (info.argsz as usize).min(size_of::<Info>());
        let mut flags = InfoFlags::PCI;
        flags.set(InfoFlags::RESET, self.reset_works);
        info.num_regions = region_index::COUNT;
        info.num_irqs = self.recovery.irq_indexes();
        let chain = self.info_capabilities(board);
        flags.set(InfoFlags::CAPS, !chain.is_empty());
        info.flags = flags.bits() | self.recovery.policy.flags.bits() << INFO_SHIFT;
        (info.argsz, info.cap_offset) = chain.place(caller, arg, size_of::<Info>(), info.argsz)?;
        args::write_prefix(caller, arg, &info, provided)
    }

    /// API-131 to API-142
    pub(super) fn get_region_info(&self, caller: &dyn Caller, arg: u64) -> Result<(), Errno> {
        let mut info: RegionInfo = args::read(caller, arg, size_of::<RegionInfo>())?;
        let mut chain = InfoChain::new();
        let mut flags = RegionFlags::empty();
        info.size = match info.index {
            index @ region_index::BAR0..=region_index::BAR5 => {
                let bar = self.bars.get(index as usize).copied().unwrap_or_default();
                flags.set(RegionFlags::READ | RegionFlags::WRITE, bar.size != 0);
                flags.set(RegionFlags::MMAP, bar.mmap != 0);
                if bar.mmap != 0 && bar.table.1 != 0 {
                    chain.add(REGION_CAP_MSIX_MAPPABLE, 1, &[]);
                }
                bar.size
            }
            // Memory is enabled for the look at the image (API-139).
            region_index::ROM if self.rom.1 != 0 => {
                flags = RegionFlags::READ;
                self.rom.0
            }
            region_index::ROM => 0,
            region_index::CONFIG => {
                flags = RegionFlags::READ | RegionFlags::WRITE;
                self.config.size()
            }
            // VGA is not built in (API-140); there are no regions of the
            // device's own (API-142).
            _ => return Err(Errno::EINVAL),
        };
        info.offset = uapi::region::offset(self.number, info.index);
        if !chain.is_empty() {
            flags |= RegionFlags::CAPS;
            (info.argsz, info.cap_offset) = chain.place(caller, arg, size_of::<RegionInfo>(), info.argsz)?;
        }
        info.flags = flags.bits();
        args::write_prefix(caller, arg, &info, size_of::<RegionInfo>())
    }

    /// API-143 to API-146
    pub(super) fn get_irq_info(&self, board: &Board, caller: &dyn Caller, arg: u64) -> Result<(), Errno> {
        let mut info: IrqInfo = args::read(caller, arg, size_of::<IrqInfo>())?;
        if info.index >= self.recovery.irq_indexes() {
            return Err(Errno::EINVAL);
        }
        info.count = self.irq_count(board, info.index);
        if (info.index == irq_index::ERR || info.index >= irq_index::COUNT) && info.count == 0 {
            return Err(Errno::EINVAL);
        }
        let more = match info.index {
            irq_index::INTX => IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED,
            // The platform adds MSI-X vectors at any time, as x86 does.
            irq_index::MSIX => IrqInfoFlags::empty(),
            _ => IrqInfoFlags::NORESIZE,
        };
        info.flags = (IrqInfoFlags::EVENTFD | more).bits();
        args::write_prefix(caller, arg, &info, size_of::<IrqInfo>())
    }

    fn info_capabilities(&self, board: &Board) -> InfoChain {
        let mut chain = InfoChain::new();
        let pf = board.fabric.physical_function(self.address).unwrap_or(self.address);
        let widths = atomic_widths(board, pf);
        if !widths.is_empty() {
            let [a, b, c, d] = widths.bits().to_ne_bytes();
            chain.add(CAP_PCI_ATOMIC_COMP, 1, &[a, b, c, d, 0, 0, 0, 0]);
        }
        chain
    }
}

/// Device Capabilities 2.
const DEVCAP2: u16 = 0x24;
/// Device Control 2.
const DEVCTL2: u16 = 0x28;

/// Widths of atomic operations that the device and the root port complete and
/// every switch on the way routes (API-127).
fn atomic_widths(board: &Board, address: Address) -> AtomicFlags {
    let Some(function) = board.fabric.function(address) else { return AtomicFlags::empty() };
    let kind = function.spec().port_type;
    if !matches!(kind, PortType::Endpoint | PortType::LegacyEndpoint | PortType::IntegratedEndpoint) {
        return AtomicFlags::empty();
    }
    let express = |function: &Function, register| {
        function.capability(cap::EXPRESS).map_or(0, |at| function.read(at + register, 4))
    };
    // Completer bits 9:7, in the order of the flags.
    let completes = |function: &Function| AtomicFlags::from_bits_truncate(express(function, DEVCAP2) >> 7);
    let mut widths = completes(function);
    let mut at = address;
    while let Some(bridge) = board.fabric.parent(at) {
        let Some(port) = board.fabric.function(bridge) else { return AtomicFlags::empty() };
        let routes = express(port, DEVCAP2) & 0x40 != 0;
        let blocks = express(port, DEVCTL2) & 0x80 != 0;
        let passes = match port.spec().port_type {
            PortType::UpstreamPort => routes && !blocks,
            PortType::DownstreamPort => routes,
            PortType::RootPort => {
                widths &= completes(port);
                true
            }
            _ => true,
        };
        if !passes {
            return AtomicFlags::empty();
        }
        at = bridge;
    }
    widths
}
