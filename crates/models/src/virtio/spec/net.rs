// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network device (5.1).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Virtio device id.
pub const ID: u32 = 1;

/// Feature bits, as masks.
pub mod feature {
    /// The device takes partial checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes partial checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// What the driver takes can be changed.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// `mtu` holds.
    pub const MTU: u64 = 1 << 3;
    /// `mac` holds.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCPv4 segments to be.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// And TCPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// And TCP with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// And UDP fragments to be.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device takes TCPv4 segments to be.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// And TCPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// And TCP with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// And UDP fragments to be.
    pub const HOST_UFO: u64 = 1 << 14;
    /// A frame may take several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `status` holds.
    pub const STATUS: u64 = 1 << 16;
    /// The control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Control of what is received.
    pub const CTRL_RX: u64 = 1 << 18;
    /// VLAN filter.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// More control of what is received.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The device may ask the driver to announce itself.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The MAC address is set through the control queue.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
}

/// Bits of the configuration's `status`.
pub mod link {
    /// The link is up.
    pub const UP: u16 = 1;
    /// The driver is asked to announce itself.
    pub const ANNOUNCE: u16 = 2;
}

/// Bytes of [`Header`].
pub const HEADER: usize = 12;

/// What each frame begins with in a ring.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Bit 0: a checksum is to be made. Bit 1: it was verified.
    pub flags: u8,
    /// Kind of segments.
    pub gso_type: u8,
    /// Bytes before the data of a segment.
    pub hdr_len: U16,
    /// Bytes of data of a segment.
    pub gso_size: U16,
    /// Where to sum from.
    pub csum_start: U16,
    /// Where the sum goes, from there.
    pub csum_offset: U16,
    /// Buffers that the frame takes.
    pub num_buffers: U16,
}

/// Flag of a [`Header`]: the checksum is partial.
pub const NEEDS_CSUM: u8 = 1;

/// Configuration space.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Address.
    pub mac: [u8; 6],
    /// See [`link`].
    pub status: U16,
    /// Most pairs of queues.
    pub max_virtqueue_pairs: U16,
    /// Largest payload of a frame.
    pub mtu: U16,
    /// Speed in Mbit/s; `u32::MAX`: unknown.
    pub speed: U32,
    /// Duplex; `0xff`: unknown.
    pub duplex: u8,
    /// Of receive side scaling, which there is none of.
    pub rss: [u8; 7],
}

const _: () = assert!(size_of::<Config>() == 24);

/// Commands of the control queue: class and command.
pub mod control {
    /// Success.
    pub const OK: u8 = 0;
    /// Failure.
    pub const ERR: u8 = 1;

    /// Receive everything: 1 byte.
    pub const RX_PROMISC: [u8; 2] = [0, 0];
    /// Receive all multicast.
    pub const RX_ALLMULTI: [u8; 2] = [0, 1];
    /// Receive all unicast.
    pub const RX_ALLUNI: [u8; 2] = [0, 2];
    /// Receive no multicast.
    pub const RX_NOMULTI: [u8; 2] = [0, 3];
    /// Receive no unicast.
    pub const RX_NOUNI: [u8; 2] = [0, 4];
    /// Receive no broadcast.
    pub const RX_NOBCAST: [u8; 2] = [0, 5];
    /// Addresses to receive: twice a u32 count and so many addresses, unicast
    /// and multicast.
    pub const MAC_TABLE_SET: [u8; 2] = [1, 0];
    /// The address: 6 bytes.
    pub const MAC_ADDR_SET: [u8; 2] = [1, 1];
    /// Receive a VLAN: u16.
    pub const VLAN_ADD: [u8; 2] = [2, 0];
    /// Receive it no more.
    pub const VLAN_DEL: [u8; 2] = [2, 1];
    /// The announcement was made.
    pub const ANNOUNCE_ACK: [u8; 2] = [3, 0];
    /// Pairs of queues to use: u16.
    pub const MQ_VQ_PAIRS_SET: [u8; 2] = [4, 0];
    /// What the driver takes: u64 of feature bits.
    pub const GUEST_OFFLOADS_SET: [u8; 2] = [5, 0];
}
