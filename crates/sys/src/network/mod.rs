// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks: [`Tap`] is an interface of this machine, [`Recorder`] writes what
//! passes to a file.

mod recorder;
mod tap;

pub use recorder::Recorder;
pub use tap::{Tap, TapError};

use device::{Frames, NetPort};

/// A network on which nothing ever comes, and what is sent is gone.
#[derive(Debug)]
pub struct NoNetwork;

impl NetPort for NoNetwork {
    fn send(&self, _pair: u16, frames: &mut Frames) {
        frames.clear();
    }

    fn receive(&self, _pair: u16, _frames: &mut Frames, _limit: usize) {}
}
