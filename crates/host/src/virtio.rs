// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a description to a virtio device: its model, and what it is plugged
//! into.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{NetPort, VirtioDevice};
use models::virtio::{blk, net};

use crate::Storage;
use crate::lab::{BlkSpec, LabError, NetSpec, NetworkKind, NetworkSpec, Place, RingSpec, VirtioModel};

/// Pairs of queues that a wire has at most.
const PAIRS: u16 = 16;

/// Makes virtio devices, and keeps the ends of wires that nobody has yet.
#[derive(Debug, Default)]
pub struct VirtioMaker {
    /// By name, what the next device that names it gets.
    ends: BTreeMap<String, Arc<net::Wire>>,
}

impl VirtioMaker {
    /// The device `name`, as described.
    pub fn make(
        &mut self,
        name: &str,
        model: &VirtioModel,
        storage: &dyn Storage,
    ) -> Result<Box<dyn VirtioDevice>, LabError> {
        match model {
            VirtioModel::Net(spec) => self.net(name, spec, storage),
            VirtioModel::Blk(spec) => blk(name, spec, storage),
        }
    }

    fn net(&mut self, name: &str, spec: &NetSpec, storage: &dyn Storage) -> Result<Box<dyn VirtioDevice>, LabError> {
        let NetSpec { network, mac, mtu, pairs, control, mergeable, offloads, announce, rings } = spec;
        let RingSpec { size, packed, in_order, indirect } = *rings;
        let port = self.port(network, *pairs, storage)?;
        let config = net::Config {
            mtu: *mtu,
            pairs: *pairs,
            queue_size: size,
            control: *control,
            mergeable: *mergeable,
            offloads: *offloads,
            packed,
            in_order,
            indirect,
            announce: *announce,
            ..net::Config::new(port, mac.unwrap_or_else(|| address(name)))
        };
        Ok(Box::new(net::Net::new(config)))
    }

    /// A wire is made by the first device that names it; the second has its
    /// other end, and after it a new wire begins.
    fn port(&mut self, spec: &NetworkSpec, pairs: u16, storage: &dyn Storage) -> Result<Arc<dyn NetPort>, LabError> {
        let inner: Option<Arc<dyn NetPort>> = match &spec.kind {
            NetworkKind::Loop => Some(net::Wire::looped(pairs)),
            NetworkKind::Wire(name) => Some(match self.ends.remove(name) {
                Some(end) => end,
                None => {
                    let (one, other) = net::Wire::new(PAIRS);
                    self.ends.insert(name.clone(), other);
                    one
                }
            }),
            NetworkKind::None | NetworkKind::Tap(_) => None,
        };
        match inner {
            Some(inner) if spec.pcap.is_none() => Ok(inner),
            inner => storage.network(spec, pairs, inner).map_err(|message| LabError::new(&spec.place, message)),
        }
    }
}

fn blk(name: &str, spec: &BlkSpec, storage: &dyn Storage) -> Result<Box<dyn VirtioDevice>, LabError> {
    let BlkSpec { disk, queues, block_size, serial, rings } = spec;
    let RingSpec { size, packed, in_order, indirect } = *rings;
    let medium = storage.open(disk).map_err(|message| LabError::new(&disk.place, message))?;
    check_size(&disk.place, medium.len(), *block_size)?;
    let config = blk::Config {
        queues: *queues,
        queue_size: size,
        block_size: *block_size,
        serial: serial.clone().unwrap_or_else(|| name.to_owned()),
        packed,
        in_order,
        indirect,
        ..blk::Config::new(medium)
    };
    Ok(Box::new(blk::Blk::new(config)))
}

fn check_size(place: &Place, len: u64, block_size: u32) -> Result<(), LabError> {
    if len < u64::from(block_size) {
        return Err(LabError::new(place, format!("a disk of {len} bytes has no block of {block_size}")));
    }
    Ok(())
}

/// A locally administered address that is the same for the same name (FNV-1a).
fn address(name: &str) -> [u8; 6] {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, ..] = hash.to_be_bytes();
    [0x02, 0x76, a, b, c, d]
}
