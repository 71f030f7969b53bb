// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys of the virtio models, `net` and `blk`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use models::virtio::QUEUE_SIZE;

use super::device::DiskSpec;
use super::section::{Number, Place, Section, Switch};
use super::{LabError, arguments};

/// What a virtio device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtioModel {
    /// A network device.
    Net(NetSpec),
    /// A block device.
    Blk(BlkSpec),
}

/// What both kinds of device have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSpec {
    /// Largest queue: a power of two, 2 to 32768.
    pub size: u16,
    /// Whether packed rings are offered.
    pub packed: bool,
    /// Whether IN_ORDER is offered.
    pub in_order: bool,
    /// Whether indirect descriptors are offered.
    pub indirect: bool,
}

/// Keys of `model = "net"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// What it is plugged into.
    pub network: NetworkSpec,
    /// Its address; `None`: made from its name.
    pub mac: Option<[u8; 6]>,
    /// Largest payload of a frame, 68 to 65535; `None`: not said.
    pub mtu: Option<u16>,
    /// Pairs of queues, 1 to 16.
    pub pairs: u16,
    /// Whether there is a control queue.
    pub control: bool,
    /// Whether a frame may take several buffers.
    pub mergeable: bool,
    /// Whether checksums and segmentation are offered.
    pub offloads: bool,
    /// Whether the driver may be asked to announce itself.
    pub announce: bool,
    /// Its queues.
    pub rings: RingSpec,
}

/// A network, and a recording of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Which one.
    pub kind: NetworkKind,
    /// Where what passes is recorded.
    pub pcap: Option<PathBuf>,
    /// Where it was described.
    pub place: Place,
}

/// Which network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// A device hears what it sends.
    Loop,
    /// What is sent is gone, and nothing comes.
    None,
    /// A TAP interface of this machine.
    Tap(String),
    /// A wire to the device that names it too.
    Wire(String),
}

impl FromStr for NetworkKind {
    type Err = String;

    fn from_str(text: &str) -> Result<NetworkKind, String> {
        let named = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
        let kind = match text.split_once(':') {
            None if text == "loop" => Some(NetworkKind::Loop),
            None if text == "none" => Some(NetworkKind::None),
            Some(("tap", name)) => named(name).map(NetworkKind::Tap),
            Some(("wire", name)) => named(name).map(NetworkKind::Wire),
            _ => None,
        };
        kind.ok_or_else(|| format!("`{text}` is not a network; there are loop, none, tap:INTERFACE and wire:NAME"))
    }
}

/// Keys of `model = "blk"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkSpec {
    /// The medium.
    pub disk: DiskSpec,
    /// Number of queues, 1 to 64.
    pub queues: u16,
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// The device's name, up to 20 characters; `None`: the lab's name for it.
    pub serial: Option<String>,
    /// Its queues.
    pub rings: RingSpec,
}

/// A MAC address.
struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2 && !byte.starts_with('+')))
            .collect();
        let mac: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
        // A multicast address, or none at all, is nobody's.
        let good = mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]);
        good.map(Mac).ok_or_else(|| format!("`{text}` is not the address of a device, for example 02:00:00:00:00:01"))
    }
}

impl VirtioModel {
    /// Reads `MODEL[,key=value]...`; `place` is how messages call it.
    pub fn parse(place: &str, argument: &str) -> Result<VirtioModel, LabError> {
        let mut section = arguments("virtio device", Place::argument(place), argument)?;
        let model = VirtioModel::decode(&mut section)?;
        section.finish()?;
        Ok(model)
    }

    /// Takes the model and its keys out of a section that may have others.
    pub(super) fn decode(section: &mut Section) -> Result<VirtioModel, LabError> {
        let place = section.place_of("model");
        let name: Option<String> = section.take("model")?;
        match name.as_deref() {
            Some("net") => Ok(VirtioModel::Net(NetSpec::decode(section)?)),
            Some("blk") => Ok(VirtioModel::Blk(BlkSpec::decode(section)?)),
            Some(name) => Err(LabError::new(&place, format!("unknown model `{name}`; models are net and blk"))),
            None => Err(LabError::new(&place, "a virtio device needs `model`; models are net and blk")),
        }
    }
}

impl NetSpec {
    fn decode(section: &mut Section) -> Result<NetSpec, LabError> {
        let place = section.place_of("network");
        let kind = section.take_or("network", NetworkKind::Loop)?;
        let network = NetworkSpec { kind, pcap: section.take("pcap")?, place };
        let mac = section.take("mac")?.map(|Mac(mac)| mac);
        let mtu_place = section.place_of("mtu");
        let mtu = section.take("mtu")?.map(|Number(mtu)| mtu);
        let mtu = mtu.map(|mtu| u16::try_from(mtu).ok().filter(|mtu| *mtu >= 68).ok_or(()));
        let mtu = mtu.transpose().map_err(|()| LabError::new(&mtu_place, "`mtu` is 68 to 65535"))?;
        let pairs = number(section, "pairs", 1, 1..=16)? as u16;
        let control_place = section.place_of("control");
        let Switch(control) = section.take_or("control", Switch(true))?;
        if pairs > 1 && !control {
            return Err(LabError::new(&control_place, "several `pairs` need `control`: a driver chooses them there"));
        }
        let Switch(mergeable) = section.take_or("mergeable", Switch(true))?;
        let Switch(offloads) = section.take_or("offloads", Switch(true))?;
        // QEMU refuses to shadow the queues of a device that offers one of these
        // (VNET-2.5.8); vdpa_sim and mlx5_vdpa do not.
        let Switch(announce) = section.take_or("announce", Switch(false))?;
        let rings = RingSpec::decode(section, false)?;
        Ok(NetSpec { network, mac, mtu, pairs, control, mergeable, offloads, announce, rings })
    }
}

impl BlkSpec {
    fn decode(section: &mut Section) -> Result<BlkSpec, LabError> {
        let queues = number(section, "queues", 1, 1..=64)? as u16;
        let place = section.place_of("block_size");
        let Number(block_size) = section.take_or("block_size", Number(512))?;
        if ![512, 4096].contains(&block_size) {
            return Err(LabError::new(&place, "`block_size` is 512 or 4096"));
        }
        let place = section.place_of("serial");
        let serial: Option<String> = section.take("serial")?;
        if serial.as_ref().is_some_and(|s| s.len() > 20 || !s.bytes().all(|b| (0x20..0x7f).contains(&b))) {
            return Err(LabError::new(&place, "`serial` is up to 20 printable ASCII characters"));
        }
        // vdpa_sim's size (VDPA-9.4).
        let disk = DiskSpec::decode(section, 128 << 20)?;
        let rings = RingSpec::decode(section, true)?;
        Ok(BlkSpec { disk, queues, block_size: block_size as u32, serial, rings })
    }
}

impl RingSpec {
    fn decode(section: &mut Section, indirect: bool) -> Result<RingSpec, LabError> {
        let place = section.place_of("queue_size");
        let size = number(section, "queue_size", u64::from(QUEUE_SIZE), 2..=32768)?;
        if !size.is_power_of_two() {
            return Err(LabError::new(&place, "`queue_size` is a power of two from 2 to 32768"));
        }
        let Switch(packed) = section.take_or("packed", Switch(false))?;
        let Switch(in_order) = section.take_or("in_order", Switch(false))?;
        let Switch(indirect) = section.take_or("indirect", Switch(indirect))?;
        Ok(RingSpec { size: size as u16, packed, in_order, indirect })
    }
}

fn number(section: &mut Section, key: &'static str, usual: u64, range: RangeInclusive<u64>) -> Result<u64, LabError> {
    let place = section.place_of(key);
    let Number(value) = section.take_or(key, Number(usual))?;
    if range.contains(&value) {
        return Ok(value);
    }
    Err(LabError::new(&place, format!("`{key}` is {} to {}", range.start(), range.end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(argument: &str, with: &str) {
        let error = VirtioModel::parse("--vdpa x", argument).unwrap_err().to_string();
        assert!(error.starts_with("--vdpa x: ") && error.contains(with), "{argument}: {error}");
    }

    #[test]
    fn a_network_device_has_these_keys() {
        let VirtioModel::Net(net) = VirtioModel::parse("x", "net").unwrap() else { panic!() };
        assert_eq!((net.network.kind, net.mac, net.mtu, net.pairs), (NetworkKind::Loop, None, None, 1));
        assert_eq!(net.rings, RingSpec { size: QUEUE_SIZE, packed: false, in_order: false, indirect: false });
        assert!(net.control && net.mergeable && net.offloads && !net.announce);
        let text = "net,network=tap:t0,pcap=a.pcap,mac=02:00:0a:0B:00:01,mtu=9000,pairs=4,queue_size=1024,packed=on,\
                    in_order=on,indirect=on,announce=on,mergeable=off,offloads=off";
        let VirtioModel::Net(net) = VirtioModel::parse("x", text).unwrap() else { panic!() };
        assert_eq!(net.network.kind, NetworkKind::Tap("t0".into()));
        assert_eq!((net.mac, net.mtu, net.pairs), (Some([2, 0, 10, 11, 0, 1]), Some(9000), 4));
        assert_eq!(net.rings, RingSpec { size: 1024, packed: true, in_order: true, indirect: true });
        assert!(!net.mergeable && !net.offloads && net.announce);
        assert_eq!(net.network.pcap, Some("a.pcap".into()));
        fails("net,network=tap", "`tap` is not a network");
        fails("net,network=wire:", "is not a network");
        fails("net,mac=1:2:3:4:5:6", "`1:2:3:4:5:6` is not the address");
        fails("net,mac=01:00:00:00:00:00", "is not the address");
        fails("net,mtu=67", "`mtu` is 68 to 65535");
        fails("net,pairs=0", "`pairs` is 1 to 16");
        fails("net,pairs=2,control=off", "several `pairs` need `control`");
        fails("net,queue_size=100", "`queue_size` is a power of two");
        fails("net,file=x", "unknown key `file`");
    }

    #[test]
    fn a_block_device_has_these_keys() {
        let VirtioModel::Blk(blk) = VirtioModel::parse("x", "blk").unwrap() else { panic!() };
        assert_eq!((blk.disk.size, blk.queues, blk.block_size, blk.serial), (Some(128 << 20), 1, 512, None));
        assert!(blk.rings.indirect);
        let text = "blk,file=/disk,queues=4,block_size=4096,serial=one,read_only=on";
        let VirtioModel::Blk(blk) = VirtioModel::parse("x", text).unwrap() else { panic!() };
        assert_eq!((blk.queues, blk.block_size, blk.serial.as_deref()), (4, 4096, Some("one")));
        assert!(blk.disk.read_only);
        fails("blk,queues=65", "`queues` is 1 to 64");
        fails("blk,block_size=1024", "`block_size` is 512 or 4096");
        fails("blk,serial=a-name-of-21-letters-", "up to 20");
        fails("gpu", "unknown model `gpu`");
        fails("blk,queues=1,queues=2", "given twice");
    }
}
