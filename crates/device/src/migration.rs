// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a device takes part in live migration: what it may do while it is being
//! moved, and what the lab says of it.

use crate::Nanos;

/// What a device may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activity {
    /// Everything.
    #[default]
    Running,
    /// It answers and takes in and begins nothing new, but goes on with what it
    /// has begun until that is over ([`Endpoint::drain`](crate::Endpoint::drain)).
    Draining,
    /// It answers and takes in, but starts no DMA: what is submitted waits
    /// (RUNNING_P2P, MIG-046 to MIG-049).
    Quiesced,
    /// Nothing: loads give zeros, stores are dropped (STOP).
    Stopped,
}

/// Why a saved state was not taken over. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LoadError {
    /// The model has no saved state.
    #[error("the device cannot be saved")]
    Unsupported,
    /// The state is of a version that the model does not know.
    #[error("the state is of version {0}")]
    Version(u32),
    /// The state is of another device, or of another configuration.
    #[error("the state is of another device")]
    OtherDevice,
    /// The state ends too early.
    #[error("the state is truncated")]
    Truncated,
    /// The state makes no sense.
    #[error("the state is corrupt: {0}")]
    Corrupt(&'static str),
}

/// How a device stops its peer-to-peer DMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum P2pStop {
    /// It starts no work; its bus mastering stays as it is.
    #[default]
    Quiesce,
    /// A weaker device: it goes on, but its bus mastering is cleared.
    BusMaster,
}

/// What the lab says of a device's migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// `VFIO_MIGRATION_P2P`: it has RUNNING_P2P.
    pub p2p: bool,
    /// `VFIO_MIGRATION_PRE_COPY`: it has PRE_COPY.
    pub pre_copy: bool,
    /// It tells which pages it writes (`DMA_LOGGING`).
    pub dma_logging: bool,
    /// How it stops peer-to-peer DMA.
    pub p2p_stop: P2pStop,
    /// Bytes of internal state that it carries besides its registers.
    pub state_size: u64,
    /// Bytes of these that change in a second while it runs.
    pub state_dirty_rate: u64,
    /// The pre-copy stream starts anew once it has given so many bytes
    /// (`VFIO_PRECOPY_INFO_REINIT`, MIG-042).
    pub reinit_after: Option<u64>,
    /// What goes wrong.
    pub failures: Vec<Failure>,
}

impl Default for Migration {
    /// The least that migrates.
    fn default() -> Migration {
        Migration {
            p2p: false,
            pre_copy: false,
            dma_logging: true,
            p2p_stop: P2pStop::default(),
            state_size: 0,
            state_dirty_rate: 0,
            reinit_after: None,
            failures: Vec::new(),
        }
    }
}

/// Something that goes wrong: an arc so often, a stream each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// A transition fails. States are numbered as Linux does (0 ERROR to 7
    /// PRE_COPY_P2P).
    Arc {
        /// From this state.
        from: u32,
        /// To this state.
        to: u32,
        /// How far it gets.
        at: Stage,
        /// How often; `u32::MAX` for always.
        times: u32,
    },
    /// The stream cannot be read or written beyond this byte: `EIO`.
    StreamBreaks(u64),
    /// The saving stream ends at this byte as if it were whole.
    StreamEnds(u64),
    /// A read or write of the stream waits so long.
    StreamSlow(Nanos),
    /// The device takes no state: `EINVAL` at the first byte.
    Refuses,
    /// The tracker of written pages has lost count: `EIO` (MIG-067).
    LoggingLost,
}

/// How far a transition gets before it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Nothing was done: the state stays.
    Before,
    /// The device cannot tell what was done: ERROR.
    Middle,
    /// All of it was done, and the state stays the old one: what was done is
    /// undone.
    After,
}
