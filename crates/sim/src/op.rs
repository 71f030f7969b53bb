// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can happen in one step. Operands are small numbers that the world maps
//! to what is there (modulo), so that any list of steps can be replayed, also
//! one from which steps were taken out.

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A program opens a container.
    OpenContainer { client: u8 },
    /// A program opens the group of a device.
    OpenGroup { client: u8, device: u8 },
    /// The whole way to an open device: container, group, IOMMU, device.
    OpenDevice { client: u8, device: u8, v1: bool },
    /// `VFIO_IOMMU_MAP_DMA` of pages of the program's memory.
    Map { client: u8, fd: u8, iova_page: u16, page: u16, pages: u8, prot: u8 },
    /// `VFIO_IOMMU_UNMAP_DMA`.
    Unmap { client: u8, fd: u8, iova_page: u16, pages: u8, all: bool },
    /// A write to the command register.
    Command { client: u8, fd: u8, value: u16 },
    /// Starts the NVMe driver on an open device: arena mapped, queues made.
    Start { client: u8, fd: u8 },
    /// Submits commands on a started device.
    Submit { client: u8, fd: u8, commands: u8, kind: u8, wild: bool },
    /// Takes completions.
    Reap { client: u8, fd: u8 },
    /// Gives a device a turn.
    Turn { device: u8 },
    /// Resets a device by ioctl or by a write of Initiate FLR.
    Reset { client: u8, fd: u8 },
    /// A device has an uncorrectable error, and the host recovers.
    Error { device: u8, fatal: bool },
    /// Unsets the container of a group.
    Unset { client: u8, fd: u8 },
    /// Closes a descriptor.
    Close { client: u8, fd: u8 },
    /// A program dies.
    Kill { client: u8 },
    /// A store to a register through the mapping.
    Poke { client: u8, fd: u8, offset: u16, value: u32 },
    /// An ioctl with a structure of random bytes.
    Garbage { client: u8, fd: u8, request: u8, seed: u64 },
    /// A read or write at a random place of a device.
    Access { client: u8, fd: u8, region: u8, offset: u16, len: u8, write: bool },
    /// Any state of migration is set.
    Migrate { client: u8, fd: u8, target: u8 },
    /// A device's state goes through its stream and back.
    Relocate { client: u8, fd: u8 },
    /// Time passes.
    Advance { us: u16 },
    /// A step on `/dev/iommu`.
    Iommufd(IommufdOp),
}

/// One step on `/dev/iommu` and devices' own nodes. `object` counts among the
/// IOASes and HWPTs of the descriptor's context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IommufdOp {
    /// A program opens `/dev/iommu`.
    Open { client: u8 },
    /// The whole way to a device through its own node, bound to a context of
    /// the program, attached to an IOAS or, with `log`, to a HWPT of one.
    OpenDevice { client: u8, device: u8, fd: u8, new: bool, log: bool },
    /// `IOAS_ALLOC`.
    Alloc { client: u8, fd: u8 },
    /// `HWPT_ALLOC`.
    Hwpt { client: u8, fd: u8, device: u8, object: u8 },
    /// `DESTROY`.
    Destroy { client: u8, fd: u8, object: u8 },
    /// Attaches a device or replaces what it is attached to.
    Attach { client: u8, device: u8, object: u8 },
    /// Detaches a device.
    Detach { client: u8, device: u8 },
    /// `IOAS_MAP`.
    Map { client: u8, fd: u8, object: u8, flags: u8, iova_page: u16, page: u16, pages: u8 },
    /// `IOAS_COPY`.
    Copy { client: u8, fd: u8, from: u8, to: u8, flags: u8, src_page: u16, dst_page: u16, pages: u8 },
    /// `IOAS_UNMAP`.
    Unmap { client: u8, fd: u8, object: u8, iova_page: u16, pages: u8, all: bool },
    /// Dirty tracking on or off, or the bitmap.
    Dirty { client: u8, fd: u8, object: u8, what: u8 },
}

impl IommufdOp {
    fn random(rng: &mut fastrand::Rng) -> IommufdOp {
        let (client, fd, device, object) = (rng.u8(..2), rng.u8(..), rng.u8(..), rng.u8(..));
        match rng.u32(..30) {
            0 => IommufdOp::Open { client },
            1..=6 => IommufdOp::OpenDevice { client, device, fd, new: rng.u8(..3) == 0, log: rng.bool() },
            7 => IommufdOp::Alloc { client, fd },
            8 => IommufdOp::Hwpt { client, fd, device, object },
            9 => IommufdOp::Destroy { client, fd, object },
            10..=11 => IommufdOp::Attach { client, device, object },
            12 => IommufdOp::Detach { client, device },
            13..=20 => IommufdOp::Map {
                client,
                fd,
                object,
                flags: rng.u8(..8),
                iova_page: rng.u16(..192),
                page: rng.u16(..260),
                pages: rng.u8(..9),
            },
            21..=23 => IommufdOp::Copy {
                client,
                fd,
                from: object,
                to: rng.u8(..),
                flags: rng.u8(..8),
                src_page: rng.u16(..192),
                dst_page: rng.u16(..192),
                pages: rng.u8(1..9),
            },
            24..=27 => IommufdOp::Unmap {
                client,
                fd,
                object,
                iova_page: rng.u16(..192),
                pages: rng.u8(..33),
                all: rng.u8(..20) == 0,
            },
            _ => IommufdOp::Dirty { client, fd, object, what: rng.u8(..) },
        }
    }
}

impl Op {
    /// A random step, the likely ones more often.
    pub(crate) fn random(rng: &mut fastrand::Rng) -> Op {
        let client = rng.u8(..2);
        let fd = rng.u8(..);
        let device = rng.u8(..4);
        match rng.u32(..116) {
            100.. => Op::Iommufd(IommufdOp::random(rng)),
            0 => Op::OpenContainer { client },
            1 => Op::OpenGroup { client, device },
            2..=7 => Op::OpenDevice { client, device, v1: rng.u8(..5) == 0 },
            8..=17 => Op::Map {
                client,
                fd,
                iova_page: rng.u16(..192),
                page: rng.u16(..260),
                pages: rng.u8(..9),
                prot: rng.u8(..4),
            },
            18..=25 => Op::Unmap { client, fd, iova_page: rng.u16(..192), pages: rng.u8(..33), all: rng.u8(..20) == 0 },
            26..=27 => Op::Command { client, fd, value: (rng.u16(..) & 0x0405) | (u16::from(rng.bool()) << 1) },
            28..=33 => Op::Start { client, fd },
            34..=53 => Op::Submit { client, fd, commands: rng.u8(1..9), kind: rng.u8(..), wild: rng.u8(..4) == 0 },
            54..=65 => Op::Reap { client, fd },
            66..=82 => Op::Turn { device },
            83 => Op::Migrate { client, fd, target: if rng.bool() { 2 } else { rng.u8(..9) } },
            84..=86 => Op::Relocate { client, fd },
            87 => match rng.u8(..4) {
                0 => Op::Error { device, fatal: true },
                1 => Op::Error { device, fatal: false },
                _ => Op::Reset { client, fd },
            },
            88 => Op::Unset { client, fd },
            89..=90 => Op::Close { client, fd },
            91 => {
                if rng.u8(..4) == 0 {
                    Op::Kill { client }
                } else {
                    Op::Turn { device }
                }
            }
            92..=93 => Op::Poke { client, fd, offset: rng.u16(..0x1080), value: rng.u32(..) },
            94..=96 => Op::Garbage {
                client,
                fd,
                request: if rng.bool() { rng.u8(0x64..0x7a) } else { rng.u8(0x80..0x95) },
                seed: rng.u64(..),
            },
            97..=98 => Op::Access {
                client,
                fd,
                region: rng.u8(..10),
                offset: rng.u16(..),
                len: rng.u8(..20),
                write: rng.bool(),
            },
            _ => Op::Advance { us: rng.u16(..) },
        }
    }
}
