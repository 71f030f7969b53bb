// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which frames a driver wants (5.1.6.5). Until it says otherwise: all.

use device::FRAME_HEADER;

use crate::virtio::spec::net::{control, feature};

/// Most addresses of each kind; with more, all of the kind are received.
pub(super) const MAX_ADDRESSES: usize = 64;
/// 802.1Q.
const VLAN: [u8; 2] = [0x81, 0x00];
const BROADCAST: [u8; 6] = [0xff; 6];

#[derive(Clone, Debug)]
pub(super) struct Filter {
    mac: [u8; 6],
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Vec<[u8; 6]>,
    multicast: Vec<[u8; 6]>,
    /// A bit for each VLAN, once there is one.
    vlans: Option<Box<[u64; 64]>>,
}

impl Filter {
    pub(super) fn new(mac: [u8; 6]) -> Filter {
        Filter {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: None,
        }
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    pub(super) fn set_mac(&mut self, mac: [u8; 6]) {
        self.mac = mac;
    }

    /// Whether there is anything to filter.
    pub(super) fn is_set(&self, features: u64) -> bool {
        !self.promiscuous || features & feature::CTRL_VLAN != 0 && self.vlans.is_some()
    }

    /// A command of the class "receive"; whether there is such a one.
    pub(super) fn set(&mut self, command: [u8; 2], on: bool) -> bool {
        let place = match command {
            control::RX_PROMISC => &mut self.promiscuous,
            control::RX_ALLMULTI => &mut self.all_multicast,
            control::RX_ALLUNI => &mut self.all_unicast,
            control::RX_NOMULTI => &mut self.no_multicast,
            control::RX_NOUNI => &mut self.no_unicast,
            control::RX_NOBCAST => &mut self.no_broadcast,
            _ => return false,
        };
        *place = on;
        true
    }

    /// Sets the addresses to receive; too many of a kind: all.
    pub(super) fn set_tables(&mut self, unicast: Option<Vec<[u8; 6]>>, multicast: Option<Vec<[u8; 6]>>) {
        self.all_unicast |= unicast.is_none();
        self.all_multicast |= multicast.is_none();
        self.unicast = unicast.unwrap_or_default();
        self.multicast = multicast.unwrap_or_default();
    }

    /// Receives a VLAN, or no more; whether the number is one.
    pub(super) fn set_vlan(&mut self, vlan: u16, on: bool) -> bool {
        let vlans = self.vlans.get_or_insert_with(|| Box::new([0; 64]));
        let Some(word) = vlans.get_mut(usize::from(vlan / 64)) else { return false };
        let bit = 1 << (vlan % 64);
        *word = if on { *word | bit } else { *word & !bit };
        true
    }

    /// Whether a frame with its header is wanted.
    pub(super) fn accepts(&self, frame: &[u8]) -> bool {
        let frame = frame.get(FRAME_HEADER..).unwrap_or_default();
        let Some(destination) = frame.first_chunk::<6>() else { return false };
        if let (Some(vlans), Some(&[high, low])) = (&self.vlans, frame.get(14..16).and_then(|tag| tag.first_chunk()))
            && frame.get(12..14) == Some(&VLAN)
        {
            let vlan = u16::from_be_bytes([high, low]) & 0xfff;
            let word = vlans.get(usize::from(vlan / 64)).copied().unwrap_or(0);
            if word & 1 << (vlan % 64) == 0 {
                return false;
            }
        }
        if self.promiscuous {
            return true;
        }
        match destination {
            &BROADCAST => !self.no_broadcast,
            [first, ..] if first & 1 != 0 => {
                !self.no_multicast && (self.all_multicast || self.multicast.contains(destination))
            }
            _ => {
                !self.no_unicast && (self.all_unicast || *destination == self.mac || self.unicast.contains(destination))
            }
        }
    }
}
