// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOTLB messages: how they are read, and who may send which (VDPA-7.1 to
//! VDPA-7.7, VDPA-7.12).

use caller::{Caller, is_user_range};
use uapi::Errno;
use uapi::vhost::{IotlbMsg, MSG_LEN, MSG_OFFSET, MSG_V1, MSG_V2, backend, iotlb};
use zerocopy::{FromBytes, IntoBytes};

use super::Cx;
use crate::device::VdpaDevice;
use crate::parent::Mapping;

/// Bytes of an envelope that are looked at.
const SEEN: usize = MSG_OFFSET + size_of::<IotlbMsg>();

/// A gathered write.
struct Parts<'a> {
    parts: &'a [(u64, u64)],
    caller: &'a dyn Caller,
}

impl Parts<'_> {
    /// Bytes from `offset` on; `None` if there are too few, or some cannot be
    /// read (VDPA-7.1).
    fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let (mut skip, mut done) = (offset as u64, 0);
        for (addr, len) in self.parts {
            if skip >= *len {
                skip -= len;
                continue;
            }
            let want = to.get_mut(done..)?;
            let run = usize::try_from(len - skip).unwrap_or(usize::MAX).min(want.len());
            self.caller.read(addr.checked_add(skip)?, want.get_mut(..run)?).ok()?;
            (skip, done) = (0, done + run);
            if done == to.len() {
                return Some(());
            }
        }
        None
    }
}

/// What a program asks for.
struct Message {
    asid: u32,
    body: IotlbMsg,
}

/// `EINVAL` in the order of VDPA-7.1.
fn parse(parts: &Parts<'_>, asid_acked: bool) -> Result<Message, Errno> {
    let mut seen = [0; SEEN];
    let all = parts.read(0, &mut seen).is_some();
    if !all {
        // Only what is looked at must be there.
        parts.read(0, &mut seen[..4]).ok_or(Errno::EINVAL)?;
    }
    let word = |bytes: &[u8], at: usize| u32::read_from_prefix(bytes.get(at..).unwrap_or_default()).map_or(0, |w| w.0);
    let asid = match word(&seen, 0) {
        MSG_V1 => 0,
        MSG_V2 if asid_acked => {
            if !all {
                parts.read(4, &mut seen[4..8]).ok_or(Errno::EINVAL)?;
            }
            word(&seen, 4)
        }
        MSG_V2 => 0,
        _ => return Err(Errno::EINVAL),
    };
    if !all {
        parts.read(MSG_OFFSET, &mut seen[MSG_OFFSET..]).ok_or(Errno::EINVAL)?;
    }
    let mut body = IotlbMsg::default();
    body.as_mut_bytes().copy_from_slice(&seen[MSG_OFFSET..]);
    if body.kind == iotlb::UPDATE && body.size == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Message { asid, body })
}

impl VdpaDevice {
    /// `write` and `writev`: one message, gathered. What it returns is the
    /// length of an envelope whatever was written (VDPA-7.3).
    pub(crate) fn write(&mut self, parts: &[(u64, u64)], cx: &mut Cx<'_>) -> Result<u64, Errno> {
        if parts.iter().any(|(addr, len)| !is_user_range(*addr, *len)) {
            return Err(Errno::EFAULT);
        }
        let acked = self.opened()?.backend & backend::IOTLB_ASID != 0;
        let message = parse(&Parts { parts, caller: cx.caller }, acked)?;
        let result = self.message(&message, cx);
        if let Err(inner) = result {
            let Message { asid, body } = message;
            tracing::debug!(target: "vfuse::vdpa", device = self.name, asid, ?body, %inner, "message refused");
            // VDPA-7.2
            return Err(Errno::EFAULT);
        }
        Ok(MSG_LEN)
    }

    /// The handler; its errnos are "inner" ones.
    fn message(&mut self, message: &Message, cx: &mut Cx<'_>) -> Result<(), Errno> {
        let Message { asid, body } = *message;
        let limit = self.driver.spec.max_entries;
        let spaces = self.driver.address_spaces();
        let open = self.opened()?;
        // VDPA-7.4
        if !open.is_owner(cx.caller) {
            return Err(Errno::EPERM);
        }
        // VDPA-7.5
        if !open.spaces.contains_key(&asid) {
            if !matches!(body.kind, iotlb::UPDATE | iotlb::BATCH_BEGIN) || asid >= spaces || limit == 0 {
                return Err(Errno::EINVAL);
            }
            open.spaces.entry(asid).or_default();
        }
        // VDPA-7.6
        if open.batch.is_some_and(|batch| batch != asid) {
            return Err(Errno::EINVAL);
        }
        match body.kind {
            iotlb::UPDATE => self.update(asid, &body, cx),
            iotlb::INVALIDATE => {
                self.invalidate(asid, body.iova, body.size, cx.accounts);
                Ok(())
            }
            // VDPA-7.12
            iotlb::BATCH_BEGIN => {
                open.batch = Some(asid);
                Ok(())
            }
            iotlb::BATCH_END => {
                if open.batch.take().is_some() && self.driver.spec.mapping == Mapping::SetMap {
                    // The program is not told.
                    if let Err(inner) = self.hand_over(asid) {
                        tracing::warn!(target: "vfuse::vdpa", device = self.name, asid, %inner, "the parent refuses its maps");
                    }
                }
                Ok(())
            }
            // VDPA-7.7
            _ => Err(Errno::EINVAL),
        }
    }
}
