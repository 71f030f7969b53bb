// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions that most labs have and nobody wants to spell out.

use crate::{FunctionSpec, PortType, Slot, cap};

impl FunctionSpec {
    /// The usual description of a port or bridge: AER, and ACS with all that
    /// isolation takes on root and downstream ports. `acs: None` makes a port
    /// that isolates nothing.
    #[must_use]
    pub fn port(kind: PortType) -> FunctionSpec {
        let (vendor, device) = match kind {
            PortType::UpstreamPort => (0x104c, 0x8232),
            PortType::DownstreamPort => (0x104c, 0x8233),
            PortType::PcieToPciBridge | PortType::PciToPcieBridge => (0x1b36, 0x000e),
            PortType::ConventionalBridge => (0x1b36, 0x0001),
            _ => (0x1b36, 0x000c),
        };
        let switch = matches!(kind, PortType::RootPort | PortType::DownstreamPort);
        let isolation = cap::ACS_ISOLATED | cap::ACS_TB | cap::ACS_DT;
        FunctionSpec {
            vendor,
            device,
            class: 0x06_04_00,
            interrupt_pin: u8::from(kind == PortType::RootPort),
            msi: (switch || kind == PortType::UpstreamPort).then_some(0),
            aer: kind.is_express(),
            acs: switch.then_some(isolation),
            slot: switch.then_some(Slot { number: 0, power: 75, hotplug: false }),
            port_type: kind,
            no_soft_reset: true,
            link: crate::Link { speed: 4, width: 16 },
            ..FunctionSpec::default()
        }
    }

    /// The host bridge that stands at device 0 of root bus 0 in most machines.
    #[must_use]
    pub fn host_bridge() -> FunctionSpec {
        FunctionSpec {
            vendor: 0x8086,
            device: 0x29c0,
            class: 0x06_00_00,
            port_type: PortType::Conventional,
            no_power_management: true,
            ..FunctionSpec::default()
        }
    }
}
