// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The engine's saved state: its registers, and how far the chain was run. A
//! descriptor is done whole in a turn, so none is half done when the engine
//! stands still; the rest of the chain waits in the program's memory.

use device::Io;
use device::migration::LoadError;
use device::saved::{Reader, Writer};

use super::spec::{self, State};
use super::{Engine, is_writable};

/// Of the layout below.
const VERSION: u32 = 1;

const STATES: [State; 5] = [State::Active, State::Done, State::Suspended, State::Halted, State::Armed];

/// There is one configuration.
pub(super) fn identity() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.bytes(b"ioat");
    writer.u32(VERSION);
    writer.finish()
}

impl Engine {
    pub(super) fn saved_state(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(VERSION);
        writer.u8(self.state as u8);
        writer.u16(self.done);
        writer.u64(self.last);
        writer.option(self.next);
        [self.failed, self.driven, self.exact, self.signalled].iter().for_each(|flag| writer.flag(*flag));
        (0..).zip(&self.own).filter(|(offset, _)| is_writable(*offset)).for_each(|(_, byte)| writer.u8(*byte));
        writer.finish()
    }

    pub(super) fn load_state(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u32()?;
        if version != VERSION {
            return Err(LoadError::Version(version));
        }
        let mut loaded = Engine::new();
        let state = STATES.get(usize::from(reader.u8()?)).copied();
        loaded.state = state.ok_or(LoadError::Corrupt("a state that does not exist"))?;
        (loaded.done, loaded.last) = (reader.u16()?, reader.u64()?);
        if loaded.last & 0x3f != 0 {
            return Err(LoadError::Corrupt("a descriptor that is not aligned"));
        }
        loaded.next = reader.option()?;
        (loaded.failed, loaded.driven) = (reader.flag()?, reader.flag()?);
        (loaded.exact, loaded.signalled) = (reader.flag()?, reader.flag()?);
        for (_, byte) in (0..).zip(&mut loaded.own).filter(|(offset, _)| is_writable(*offset)) {
            *byte = reader.u8()?;
        }
        reader.finish()?;
        let status = loaded.status().to_le_bytes();
        if let Some(to) = loaded.own.get_mut(spec::CHANSTS..spec::CHANSTS + status.len()) {
            to.copy_from_slice(&status);
        }
        loaded.arrived = true;
        *self = loaded;
        Ok(())
    }

    /// After a load, when the engine runs: a message on the way may have been
    /// lost with the source. One too many does no harm.
    pub(super) fn announce(&mut self, io: &Io<'_>) {
        if std::mem::take(&mut self.arrived) && self.signalled {
            io.interrupts.message(0);
        }
    }
}
