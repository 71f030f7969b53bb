// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls with paths, answered without namespaces.

use uapi::Errno;

use crate::calls::Outcome;
use crate::listener::{Listener, Notification};
use crate::state::State;

impl State {
    /// Answers a call that names a file.
    pub(crate) fn path_call(&mut self, _n: &Notification, _listener: &Listener) -> Result<Outcome, Errno> {
        Ok(Outcome::GoOn)
    }

    /// Opens an entry of the fake tree that is neither node nor store.
    pub(crate) fn open_in_farm(&mut self, _path: &str, _flags: i32) -> Result<Outcome, Errno> {
        Ok(Outcome::GoOn)
    }

    /// The working directory of a process, if it lies in the fake tree.
    pub(crate) fn directory(&mut self, pid: i32) -> Option<String> {
        self.directories.get(&pid).cloned()
    }
}
