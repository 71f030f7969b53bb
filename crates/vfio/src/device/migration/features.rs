// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device features of migration, in Linux's order of checks.

use ::device::{Board, Nanos};
use caller::{Caller, FileId, FileIds};
use uapi::Errno;
use uapi::vfio::device::{FeatureFlags, feature};
use uapi::vfio::migration::{LoggingControl, LoggingReport, MigState, MigrationFlags};
use zerocopy::IntoBytes;

use super::{Migration, Stream};
use crate::device::feature::Request;
use crate::device::state::Device;

impl Device {
    /// A feature of migration; the file of a stream that was opened.
    pub(in crate::device) fn migration_feature(
        &mut self,
        number: u32,
        request: &Request,
        caller: &dyn Caller,
        board: &mut Board,
        files: &mut FileIds,
        now: Nanos,
    ) -> Result<Option<FileId>, Errno> {
        let Some(migration) = &mut self.migration else {
            // Having no PRE_COPY is looked at first (MIG-043).
            let v2 = number == feature::MIG_PRECOPY_INFO_V2;
            return Err(if v2 { Errno::EINVAL } else { Errno::ENOTTY }); // MIG-003
        };
        let (get, set) = (FeatureFlags::GET, FeatureFlags::SET);
        match number {
            feature::MIGRATION => {
                if request.check(get, size_of::<u64>())? {
                    caller.write(request.data, migration.flags.bits().as_bytes())?;
                }
            }
            feature::MIG_DEVICE_STATE => {
                if request.check(get | set, size_of::<MigState>())? {
                    let result = migration.device_state(request, caller, board, files, now);
                    self.sync(board, now);
                    return result;
                }
            }
            feature::MIG_DATA_SIZE => {
                if request.check(get, size_of::<u64>())? {
                    caller.write(request.data, migration.data_size(now).as_bytes())?;
                }
            }
            feature::MIG_PRECOPY_INFO_V2 => {
                if !migration.flags.contains(MigrationFlags::PRE_COPY) {
                    return Err(Errno::EINVAL);
                }
                migration.precopy_v2 |= request.check(set, 0)?;
            }
            feature::DMA_LOGGING_START => {
                migration.check_logging()?;
                if request.check(set, size_of::<LoggingControl>())? {
                    migration.start_logging(request, caller)?;
                }
            }
            feature::DMA_LOGGING_STOP => {
                migration.check_logging()?;
                if request.check(set, 0)? {
                    migration.stop_logging();
                }
            }
            feature::DMA_LOGGING_REPORT => {
                migration.check_logging()?;
                if request.check(get, size_of::<LoggingReport>())? {
                    migration.report_logging(request, caller, board)?;
                }
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(None)
    }
}

impl Migration {
    /// MIG_DEVICE_STATE (MIG-011 to MIG-019).
    fn device_state(
        &mut self,
        request: &Request,
        caller: &dyn Caller,
        board: &mut Board,
        files: &mut FileIds,
        now: Nanos,
    ) -> Result<Option<FileId>, Errno> {
        let mut mig: MigState = request.read(caller)?;
        let no_stream = |mut mig: MigState, result: Result<(), Errno>| {
            mig.data_fd = -1;
            caller.write(request.data, mig.as_bytes())?;
            result.map(|()| None)
        };
        if request.flags.contains(FeatureFlags::GET) {
            mig.device_state = self.state as u32;
            return no_stream(mig, Ok(()));
        }
        if self.drains {
            match self.drain_for(mig.device_state) {
                Err(errno) => return no_stream(mig, Err(errno)),
                Ok(true) => return self.set_and_drain(request, mig, caller, board, now).map(|()| None),
                Ok(false) => {}
            }
        }
        match self.set_state(mig.device_state, board, now) {
            Err(errno) => no_stream(mig, Err(errno)),
            Ok(false) => no_stream(mig, Ok(())),
            Ok(true) => {
                // The state has changed, whatever becomes of the descriptor (MIG-019).
                let file = files.allocate();
                let opened = caller.new_stream(file, self.is_resuming()).and_then(|(fd, readiness)| {
                    mig.data_fd = fd;
                    caller.write(request.data, mig.as_bytes()).inspect_err(|_| caller.close(fd))?;
                    Ok(readiness)
                });
                match opened {
                    Ok(readiness) => {
                        self.opened(file, readiness);
                        Ok(Some(file))
                    }
                    Err(errno) => {
                        self.session = None;
                        Err(errno)
                    }
                }
            }
        }
    }

    fn is_resuming(&self) -> bool {
        self.session.as_ref().is_some_and(|session| matches!(session.stream, Stream::Loading(_)))
    }

    /// MIG-045
    fn data_size(&mut self, now: Nanos) -> u64 {
        self.pass(now);
        let model = self.endpoint.save(now).len() as u64;
        match &self.session {
            Some(super::Session { stream: Stream::Saving(saving), .. }) => saving.left(&self.memory, model),
            _ => self.hello.len() as u64 + self.memory.size() + model + 4 * ::device::saved::HEADER as u64,
        }
    }
}
