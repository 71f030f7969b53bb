// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Namespaces and their names.
//!
//! Identifiers are derived from the controller's serial number and the
//! namespace id, so that they stay the same from run to run and differ
//! between disks.

use std::sync::Arc;

use device::Disk;

use super::LbaSize;
use super::spec::Status;

/// A namespace.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    /// The bytes.
    pub(crate) disk: Arc<dyn Disk>,
    /// log2 of the block size.
    pub(crate) shift: u8,
    /// Size in blocks.
    pub(crate) blocks: u64,
    /// Whether it may not be written.
    pub(crate) read_only: bool,
    /// Its names.
    pub(crate) ids: Ids,
}

impl Namespace {
    pub(crate) fn new(disk: Arc<dyn Disk>, lba_size: LbaSize, serial: &str, id: u32) -> Namespace {
        let shift = lba_size.shift();
        let blocks = disk.len() >> shift;
        let read_only = disk.is_read_only();
        Namespace { disk, shift, blocks, read_only, ids: Ids::new(serial, id) }
    }

    /// Refuses what would change a namespace that may not be written.
    pub(crate) fn check_writable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::WRITE_PROTECTED) } else { Ok(()) }
    }

    /// Whether `count` blocks from `slba` lie inside.
    pub(crate) fn contains(&self, slba: u64, count: u64) -> bool {
        slba.checked_add(count).is_some_and(|end| end <= self.blocks)
    }
}

/// Identifiers of a namespace, or of the subsystem where the id is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    /// IEEE Extended Unique Identifier, most significant byte first.
    pub(crate) eui64: [u8; 8],
    /// Namespace Globally Unique Identifier.
    pub(crate) nguid: [u8; 16],
    /// UUID of version 8 (a name of our own making; RFC 9562).
    pub(crate) uuid: [u8; 16],
}

/// A company id that is locally administered, so nobody's.
pub(crate) const OUI: [u8; 3] = [0x52, 0x54, 0x00];

impl Ids {
    pub(crate) fn new(serial: &str, id: u32) -> Ids {
        let [a, b, c, d] = ["eui64", "nguid", "uuid", "uuid, low half"].map(|salt| hash(serial, id, salt));
        let mut eui64 = a;
        eui64[..3].copy_from_slice(&OUI);
        let mut nguid = [0; 16];
        nguid[..8].copy_from_slice(&b);
        nguid[8..].copy_from_slice(&eui64);
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&c);
        uuid[8..].copy_from_slice(&d);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Ids { eui64, nguid, uuid }
    }
}

/// A 64-bit hash of a device's serial number, for its PCI serial number.
pub(crate) fn serial_number(serial: &str) -> u64 {
    u64::from_be_bytes(Ids::new(serial, 0).eui64)
}

/// A UUID as text.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// FNV-1a with a final mix (MurmurHash3's), since FNV alone spreads the last
/// bytes of a short text badly.
fn hash(serial: &str, id: u32, salt: &str) -> [u8; 8] {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for byte in serial.bytes().chain([0]).chain(id.to_le_bytes()).chain(salt.bytes()) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (h ^ h >> 33).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_distinct() {
        let one = Ids::new("vfuse-0", 1);
        assert_eq!(one, Ids::new("vfuse-0", 1));
        for other in [Ids::new("vfuse-0", 2), Ids::new("vfuse-1", 1)] {
            assert_ne!(one.eui64, other.eui64);
            assert_ne!(one.nguid, other.nguid);
            assert_ne!(one.uuid, other.uuid);
        }
        let text = uuid_text(&one.uuid);
        assert_eq!((text.len(), &text[14..15]), (36, "8"));
        // Disks keep their names from version to version of this program.
        assert_eq!(one.eui64, Ids::new("vfuse-0", 1).eui64);
    }
}
