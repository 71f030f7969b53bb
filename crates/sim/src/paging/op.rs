// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can happen in one step. Operands are small numbers that the world maps
//! to what is there.

/// One step. `device` is one of three, `queue` one of its user's two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A program binds a device and makes two queues.
    Open {
        client: u8,
        device: u8,
    },
    /// A device asks for a page, by PASID `pasid`, or without one if that is 0.
    Ask {
        device: u8,
        pasid: u8,
    },
    /// A device breaks a rule.
    Break {
        device: u8,
        pasid: u8,
        what: u8,
    },
    /// Its user reads at most so many records.
    Read {
        device: u8,
        queue: u8,
        records: u8,
    },
    /// Its user answers something that it has read of the queue, maybe long ago.
    Answer {
        device: u8,
        queue: u8,
        back: u8,
        invalid: bool,
    },
    /// Its user answers with another queue's cookie.
    Misdirect {
        device: u8,
        queue: u8,
        other: u8,
        back: u8,
    },
    /// Or with any number, or code.
    Wild {
        device: u8,
        queue: u8,
        cookie: u32,
        code: u8,
    },
    /// Attaches a PASID, or replaces what it is attached to.
    Attach {
        device: u8,
        pasid: u8,
        queue: u8,
    },
    Detach {
        device: u8,
        pasid: u8,
    },
    /// `VFIO_DEVICE_RESET`
    Reset {
        device: u8,
    },
    /// The host resets the function that two of the devices are parts of.
    ResetParent,
    /// Its user closes the device, or a queue.
    Close {
        device: u8,
    },
    CloseQueue {
        device: u8,
        queue: u8,
    },
    Kill {
        client: u8,
    },
    /// Time passes, in milliseconds.
    Advance {
        ms: u8,
    },
}

impl Op {
    /// A random step, the likely ones more often.
    pub(super) fn random(rng: &mut fastrand::Rng) -> Op {
        let (client, device, queue) = (rng.u8(..2), rng.u8(..3), rng.u8(..2));
        let (pasid, back) = (rng.u8(..4), rng.u8(..4));
        match rng.u32(..100) {
            0..=9 => Op::Open { client, device },
            10..=34 => Op::Ask { device, pasid: if rng.u8(..4) == 0 { pasid } else { pasid % 2 } },
            35..=37 => Op::Break { device, pasid, what: rng.u8(..) },
            38..=54 => Op::Read { device, queue, records: rng.u8(..12) },
            55..=74 => Op::Answer { device, queue, back, invalid: rng.bool() },
            75..=76 => Op::Misdirect { device, queue, other: rng.u8(..), back },
            77..=78 => {
                let cookie = if rng.bool() { rng.u32(..600) } else { rng.u32(..) };
                Op::Wild { device, queue, cookie, code: back }
            }
            79..=89 => Op::Attach { device, pasid, queue },
            90..=92 => Op::Detach { device, pasid },
            93 if rng.bool() => Op::Reset { device },
            94 if rng.u8(..4) == 0 => Op::ResetParent,
            95 => Op::Close { device },
            96 => Op::CloseQueue { device, queue },
            97 => Op::Kill { client },
            _ => Op::Advance { ms: rng.u8(..30) },
        }
    }
}
