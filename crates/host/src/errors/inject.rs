// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/dev/aer_inject`, as Linux's module of that name has it (ERR-059 to
//! ERR-064). The `aer-inject` tool writes to it.

use caller::{Caller, Capability};
use pci::aer::Injection;
use uapi::Errno;

use super::errno;
use crate::host::Host;

/// Longest record.
const RECORD: u64 = 32;

impl Host {
    /// `write`, and `writev` of one record a part; the bytes taken. Only the
    /// error of the first part counts.
    pub(crate) fn write_injection(&mut self, parts: &[(u64, u64)], caller: &dyn Caller) -> Result<u64, Errno> {
        let mut done = 0;
        for (buf, len) in parts.iter().filter(|(_, len)| *len != 0) {
            match self.write_record(*buf, *len, caller) {
                Ok(()) => done += len,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` for a length that no record
    /// has, `EFAULT`, then what [`pci::Fabric::inject`] says.
    fn write_record(&mut self, buf: u64, len: u64, caller: &dyn Caller) -> Result<(), Errno> {
        if !caller.capable(Capability::SysAdmin) {
            return Err(Errno::EPERM);
        }
        let mut record = [0; RECORD as usize];
        let record = usize::try_from(len).ok().and_then(|len| record.get_mut(..len)).ok_or(Errno::EINVAL)?;
        if Injection::from_record(record).is_none() {
            return Err(Errno::EINVAL);
        }
        caller.read(buf, record)?;
        let injection = Injection::from_record(record).ok_or(Errno::EINVAL)?;
        let address = injection.target.ok_or(Errno::ENODEV)?;
        self.inject_one(address, &injection).map_err(|error| {
            tracing::warn!(target: "vfuse::aer", %error, "an injection is refused");
            errno(error)
        })
    }
}
